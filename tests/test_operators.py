"""The operators: demo, which sends nothing, and smsru with its whole table of codes."""
import pytest
from pretend import GOOD_KEY, Browser, World, until
from steps import (
    HOUR,
    NUMBER,
    PHONE,
    calls,
    cut,
    doubted,
    folder_of,
    installed_app,
    logged,
    make_due,
    one_pass,
    outcomes,
    pause,
    read,
    received,
    rests,
    send,
    settled,
    stored,
    told,
    tried,
)

# demo --------------------------------------------------------------------------------------------

DEMO = {"+79990000000": ["sent", "delivered"], "+7 (999) 000-00-01": ["sent", "undelivered"],
        "+79990000002": ["sent", "failed"], "+79990000003": ["sent", "delivered"]}


def test_demo_delivers_and_its_numbers_meet_trouble(world):
    app = installed_app(world, SMS_OPERATOR="demo", RETRY_AFTER=0.1)
    ids = {to: send(world, "nothing is sent", to) for to in DEMO}
    third = ids["+79990000003"]
    tried(app, third)

    def nothing_waits():
        make_due(app)
        return one_pass(world)["waiting"] == 0
    until(nothing_waits, message="demo has not delivered")
    assert {to: world.portal.messages[one]["history"] for to, one in ids.items()} == DEMO
    assert outcomes(app, third) == ["in doubt", "sent"]
    assert outcomes(app, ids["+79990000002"]) == ["failed"]
    assert not world.smsru.requests


@pytest.mark.parametrize(("key", "status"), [("", 400), ("   ", 400), ("x", 200), ("ключ", 200)])
def test_demo_takes_any_key_but_an_empty_one(key, status, demo):
    browser = Browser(demo)
    browser.open("install")
    answer = browser.save(api_key=key)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"] == "OPERATOR_KEY"


@pytest.fixture(scope="module")
def demo():
    with World() as world:
        world.start_app(SMS_OPERATOR="demo", STATUSES_EVERY=0)
        yield world


# smsru -------------------------------------------------------------------------------------------

RETRY_AFTER = 60  # seconds


@pytest.fixture
def shop(shared):
    return shared


MINUTE = 60
FAILED = (202, 203, 204, 205, 207, 209, 214, 215, 216, 217, 221, 550, 999)
HELD = {200: ("key", MINUTE), 300: ("key", MINUTE), 301: ("key", MINUTE), 302: ("key", MINUTE),
        201: ("money", MINUTE), 206: ("limit", HOUR), 220: ("down", MINUTE), 500: ("down", MINUTE),
        230: ("later", MINUTE), 231: ("later", MINUTE), 232: ("later", MINUTE),
        233: ("later", MINUTE)}
ENDS = ("key", "money", "limit", "down")  # what concerns the whole account


@pytest.fixture(params=["entry", "entry with an id", "whole request"])
def refuse(request, shop):
    """The three ways in which SMS.ru refuses a message."""
    def with_code(number, code):
        shop.smsru.error_ids = request.param == "entry with an id"
        if request.param == "whole request":
            shop.smsru.refuse = code
        else:
            shop.smsru.codes = {number: code}
    return with_code


@pytest.mark.parametrize("code", FAILED)
def test_a_permanent_refusal_is_failed_and_its_code_is_logged(shop, refuse, code):
    refuse("79250000000", code)
    message_id = send(shop, "no", "+79250000000")
    tried(shop.app, message_id)
    shop.smsru.refuse = None
    line, = logged(shop.app, "send", message_id)
    assert line["outcome"] == "failed"
    assert line["note"] == str(code)
    assert one_pass(shop)["failed"] == 1
    assert shop.portal.messages[message_id]["history"] == ["sent", "failed"]
    assert len(calls(shop.smsru, "/sms/send")) == 1


@pytest.mark.parametrize("code", HELD)
def test_a_passing_refusal_holds_the_message(shop, refuse, code):
    outcome, wait = HELD[code]
    refuse("79250000001", code)
    message_id = send(shop, "wait", "+79250000001")
    tried(shop.app, message_id)
    assert outcomes(shop.app, message_id) == [outcome]
    message = read(shop.app, message_id)
    assert (message["text"], message["status"], message["operator_id"]) == ("wait", "", "")
    assert not message["in_doubt"]
    assert wait * 0.9 < pause(shop.app, message_id) <= wait
    if outcome in ENDS:
        until(lambda: wait * 0.9 < rests(shop.app) <= wait)
    else:
        assert one_pass(shop)["errors"] == {}
    assert shop.portal.messages[message_id]["history"] == ["sent"]


def test_a_code_that_is_a_text_leaves_nothing_in_the_log(shop):
    shop.smsru.trouble = lambda method, path, fields: (200, {"status": "ERROR", "status_code": (
        f"no {fields.get('to')} {fields.get('msg')} {fields.get('api_id')}")}, {})
    message_id = send(shop, "planted text", "+79250000002")
    tried(shop.app, message_id)
    until(lambda: rests(shop.app) > 0)
    log = "".join(path.read_text("utf-8") for path in shop.app.data.glob("logs/*"))
    assert [secret for secret in ("9250000002", "planted text", GOOD_KEY) if secret in log] == []


FINAL = {103: "delivered", 110: "delivered", 999: "failed",
         **dict.fromkeys((104, 105, 106, 107, 108, 150), "undelivered"),
         **dict.fromkeys((-1, 100, 101, 102))}


@pytest.mark.parametrize("code", FINAL)
def test_the_operators_status_becomes_the_portals(shop, code):
    message_id = send(shop, "what became of it", "+79250000003")
    settled(shop.app, message_id)
    shop.smsru.delivery = {"79250000003": code}
    one_pass(shop)
    news = shop.portal.messages[message_id]["history"][1:]
    assert news == ([FINAL[code]] if FINAL[code] else [])
    assert (message_id in stored(shop.app)) == (FINAL[code] is None)


@pytest.mark.parametrize(("written", "sent"), [
    ("+7 (925) 507-06-02", "79255070602"), ("8 925 507-06-02", "79255070602"),
    ("8(925)5070602", "79255070602"), ("79255070602", "79255070602"),
    ("+49 171 123-4567", "491711234567"), ("810 44 20 7946 0958", "810442079460958"),
    ("8 800 1234", "88001234"), (" +375 29 123-45-67\n", "375291234567")])
def test_numbers_are_sent_as_digits_and_an_8_becomes_7_in_11_of_them(shop, written, sent):
    send(shop, "a number", written)
    until(lambda: calls(shop.smsru, "/sms/send"))
    assert calls(shop.smsru, "/sms/send")[0]["to"] == sent


def test_requests_are_forms_posted_with_json_and_the_key_is_in_no_address(shop):
    seen = len(shop.wire.exchanges)
    settled(shop.app, send(shop, "a form"))
    one_pass(shop)
    made = [one for one in shop.wire.since(seen) if one["to"] == "operator"]
    assert [(one["method"], one["path"]) for one in made] == [
        ("POST", "/sms/send"), ("POST", "/sms/status")]
    (asked,), (told,) = calls(shop.smsru, "/sms/send"), calls(shop.smsru, "/sms/status")
    assert asked == {"api_id": GOOD_KEY, "json": "1", "to": NUMBER, "msg": "a form"}
    assert set(told) == {"api_id", "json", "sms_id"}


NO_SENSE = ["<br>Notice: ...", "", "100\n1-1", {}, [], None, 7, {"status": "?"},
            {"status_code": "100"}, {"status_code": [100]}, {"error": None},
            *[{"status": "OK", "status_code": 100, **entries} for entries in (
                {}, {"sms": []}, {"sms": {}}, {"sms": None}, {"sms": {"7": "?"}},
                {"sms": {"7": {"status": "OK"}}})]]


@pytest.mark.parametrize("answer", NO_SENSE)
def test_a_message_answered_with_200_and_no_sense_may_be_sent_and_is_tried_once_more(shop, answer):
    def accept(method, path, fields):
        if path == "/sms/send":
            shop.smsru.send(path, fields)
            return 200, answer, {}
    shop.smsru.trouble = accept
    before = received(shop, "accepted")
    message_id = send(shop, "accepted")
    tried(shop.app, message_id)
    until(lambda: rests(shop.app) > 0)
    message = read(shop.app, message_id)
    assert (message["text"], message["operator_id"], message["status"]) == ("accepted", "", "")
    assert told(shop, message_id) == ["sent", "failed"]
    assert received(shop, "accepted") - before == 2


@pytest.mark.parametrize("answer", NO_SENSE)
def test_a_question_answered_without_sense_ends_no_message(shop, answer):
    message_id = send(shop, "asked about")
    settled(shop.app, message_id)
    shop.smsru.trouble = lambda method, path, fields: (200, answer, {})
    assert one_pass(shop)["waiting"] == 1
    shop.smsru.trouble = None
    make_due(shop.app)
    assert one_pass(shop)["delivered"] == 1


@pytest.mark.parametrize("code", [231, 232])
def test_the_same_text_refused_after_a_doubt_means_that_the_first_try_came_through(
        shop, refuse, code):
    cut(shop, 1)
    message_id = send(shop, "it did", "+79250000004")
    tried(shop.app, message_id)
    assert doubted(shop.app, message_id)
    until(lambda: rests(shop.app) > 0)
    refuse("79250000004", code)
    assert told(shop, message_id) == ["sent", "sent"]
    assert folder_of(shop.app, message_id) is None
    assert len(calls(shop.smsru, "/sms/send")) == 2
    assert outcomes(shop.app, message_id) == ["in doubt", "sent"]


def test_a_test_is_marked_and_its_ids_may_repeat(world):
    app = installed_app(world, SMSRU_TEST=1, RETRY_AFTER=60)
    world.smsru.delay = 0
    ids = [send(world, f"test {number}", f"+7926000000{number}") for number in range(5)]
    settled(app, *ids)
    assert {fields["test"] for fields in calls(world.smsru, "/sms/send")} == {"1"}
    assert len({one["operator_id"] for one in stored(app).values()}) == 1
    one_pass(world)
    assert [world.portal.messages[one]["history"][-1] for one in ids] == ["delivered"] * 5
    assert not app.queue()
    assert world.smsru.balance == 1000.0


def test_the_form_wants_a_key_that_the_operator_accepts(shop):
    browser = Browser(shop)
    browser.open("index")
    answer = browser.save(api_key="wrong")
    assert (answer.status_code, answer.json()["error"]) == (400, "OPERATOR_KEY")
    send(shop, "the good key stays", PHONE)
    until(lambda: received(shop, "the good key stays"))
