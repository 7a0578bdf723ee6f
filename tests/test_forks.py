"""The forks of tests/forks: each runs as its own process and overrides only what the seams name."""
import hashlib
import re
import time

import pytest
import requests
from portal import ROOT, TEXT, App, Browser, World, install, until
from test_queue import (
    PHONE,
    calls,
    change,
    doubted,
    logged,
    make_due,
    one_pass,
    read,
    send,
    settled,
    tried,
)
from twilio import BASE, KEYS, NUMBER, SID, TOKEN, Twilio
from wire import Party

FORKS = ROOT / "tests" / "forks"


def start_fork(world, name, **env):
    """Start tests/forks/NAME.py, or the script at this path, in the app's place."""
    fork = App(world, **{"STATUSES_EVERY": 0, "RETRY_AFTER": 60, **env})
    fork.script = FORKS / f"{name}.py" if isinstance(name, str) else name
    world.apps.append(fork)
    world.app, world.portal.app_url = fork, fork.url
    return fork.start()


def history(world, message_id):
    return world.portal.messages[message_id]["history"]


# ---- Another operator ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def one_world():
    world = World()
    world.twilio = Twilio(world.wire).start()
    try:
        start_fork(world.start(), "twilio_operator", TWILIO_URL=world.twilio.url, SMS_OPERATOR=None)
        assert Browser(world).install(**KEYS).status_code == 200
        yield world
    finally:
        world.stop()
        world.twilio.stop()


@pytest.fixture
def twilio(one_world):
    """The fork installed, its Twilio as good as new."""
    operator = one_world.twilio
    if not operator.server:
        operator.start()
    operator.account, operator.refuse, operator.trouble, operator.delay = "active", None, None, 0
    operator.requests.clear()
    yield one_world
    for path in (one_world.app.data / "queue").iterdir():
        path.unlink()


def test_the_form_asks_for_the_three_fields_and_the_page_shows_their_ends(twilio):
    browser = Browser(twilio)
    browser.open("install")
    assert {name: browser.form.fields[name] for name in KEYS} == dict.fromkeys(KEYS, "")
    assert "api_key" not in browser.form.fields
    page = browser.open("index").text
    for value in KEYS.values():
        assert "••••" + value[-4:] in page
        assert value not in page


def test_the_providers_name_and_the_start_up_line_do_not_say_demo(twilio):
    assert "demo" not in str(twilio.portal.senders["fastsms"])
    assert "with the operator twilio\n" in twilio.app.output()


@pytest.mark.parametrize(("field", "value", "account", "error"), [
    ("account_sid", "AC" + "0" * 32, "active", "OPERATOR_KEY"),
    ("account_sid", "../Accounts", "active", "OPERATOR_KEY"),
    ("auth_token", "0" * 32, "active", "OPERATOR_KEY"),
    ("auth_token", "ключ", "active", "OPERATOR_KEY"),
    ("from_number", NUMBER, "suspended", "OPERATOR_KEY"),
    ("from_number", NUMBER, None, "OPERATOR_DOWN"),
    ("from_number", NUMBER, "active", None),
])
def test_save_checks_the_account_and_an_empty_field_keeps_the_saved_one(
        twilio, field, value, account, error):
    twilio.twilio.account = account
    if account is None:
        twilio.twilio.stop()
    browser = Browser(twilio)
    browser.open("index")
    answer = browser.save(**{field: value})
    assert answer.json().get("error") == error
    assert (answer.status_code == 200) == (error is None)


def test_a_message_reaches_twilio_and_its_status_the_portal(twilio):
    twilio.twilio.delivery = {"+79250000001": "undelivered", "+79250000002": "failed",
                              "+79250000003": "read"}
    ids = [send(twilio, TEXT, to) for to in (PHONE, "8 925 000-00-01", *twilio.twilio.delivery)]
    settled(twilio.app, *ids)
    assert {one["to"] for one in twilio.twilio.sent[-5:]} == {
        "+79255070602", *twilio.twilio.delivery}
    assert twilio.twilio.sent[-1]["body"] == TEXT
    assert one_pass(twilio)["waiting"] == 0
    assert [history(twilio, one)[1:] for one in ids] == [
        ["delivered"], ["undelivered"], ["undelivered"], ["failed"], ["delivered"]]
    assert len(calls(twilio.twilio, ".json")) == 10  # a request a message, a question an id


def test_what_is_under_way_is_asked_about_again(twilio):
    twilio.twilio.delay = 3600
    message_id = send(twilio, TEXT)
    settled(twilio.app, message_id)
    assert one_pass(twilio)["waiting"] == 1
    twilio.twilio.delay = 0
    make_due(twilio.app)
    assert one_pass(twilio)["waiting"] == 0
    assert history(twilio, message_id) == ["sent", "delivered"]


def test_whoever_answers_in_twilios_place_ends_no_message(twilio):
    twilio.twilio.trouble = lambda method, path, fields: (403, "<html>Forbidden</html>", {})
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    assert read(twilio.app, message_id)["status"] == ""


@pytest.mark.parametrize(("refusal", "outcome"), [
    ((400, 21211), "failed"), ((400, 21610), "failed"), ((401, 20003), "key"),
    ((400, 21606), "key"), ((429, 20429), "down"), ((429, 63038), "limit"), ((503, 20503), "down"),
])
def test_twilios_codes_become_outcomes(twilio, refusal, outcome):
    twilio.twilio.refuse = refusal
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    line, = logged(twilio.app, "send", message_id)
    assert (line["outcome"], line["answer"]) == (outcome, str(refusal[1]))
    assert read(twilio.app, message_id)["status"] == ("failed" if outcome == "failed" else "")


def test_an_operator_that_is_down_keeps_the_message_waiting(twilio):
    twilio.twilio.stop()
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    twilio.twilio.start()
    make_due(twilio.app)
    assert one_pass(twilio)["sent"] == 1
    assert read(twilio.app, message_id)["operator_id"].startswith("SM")


@pytest.mark.parametrize("lost", [None, (200, "<html>PHP Notice</html>", {}), (201, "", {}),
                                  (504, {"message": "Endpoint request timed out"}, {})])
def test_silence_after_acceptance_is_in_doubt_and_tried_once_more(twilio, lost):
    def trouble(method, path, fields):
        if method == "POST" and not lost:
            raise ConnectionResetError
        return lost if method == "POST" else None
    twilio.twilio.trouble = trouble
    message_id = send(twilio, "in doubt")
    tried(twilio.app, message_id)
    for _ in range(3):
        make_due(twilio.app)
        one_pass(twilio)
    assert doubted(twilio.app, message_id)
    assert len(calls(twilio.twilio, "/Messages.json")) == 2
    assert history(twilio, message_id) == ["sent", "failed"]


def test_a_twilio_that_is_down_is_asked_about_one_message_only(twilio):
    ids = [send(twilio, TEXT) for _ in range(3)]
    settled(twilio.app, *ids)
    twilio.twilio.trouble = lambda method, path, fields: (503, "<html>503</html>", {})
    twilio.twilio.requests.clear()
    assert one_pass(twilio)["errors"] == {"operator": "down"}
    assert len(calls(twilio.twilio, ".json")) == 1


def test_nothing_of_the_account_is_in_the_log(twilio):
    message_id = send(twilio, TEXT, "+7 925 000 00 01")
    settled(twilio.app, message_id)
    text = "".join(path.read_text() for path in (twilio.app.data / "logs").iterdir())
    text += twilio.app.output()
    assert not [secret for secret in (TOKEN, SID, TEXT, "9250000001") if secret in text]
    assert BASE not in text


# ---- The README's operator, and one with mistakes -----------------------------------------------
def with_operator(world, folder, name, lines, **env):
    """The app as somebody's fork has it: a class above OPERATORS, its name in the table."""
    source = (ROOT / "app.py").read_text("utf-8")
    table = 'OPERATORS = {"demo": Demo, '
    assert table in source
    forked = source.replace(table, f'{lines}\n\n\n{table}"{name.lower()}": {name}, ')
    (folder / "app.py").write_text(forked, "utf-8")
    (folder / "views").symlink_to(ROOT / "views")
    start_fork(world, folder / "app.py", SMS_OPERATOR=name.lower(), **env)


class Acme(Party):
    """What the README's example talks to."""

    name = "acme"

    def answer(self, method, path, fields, request):
        if request.headers.get("Token") != "right":
            return 401, {"message": "wrong token"}, {}
        if (method, path) == ("POST", "/sms"):
            digits = fields["to"].isdigit() and fields["from"] == "Firm"
            return (200, {"id": 158}, {}) if digits else (400, {"message": "wrong number"}, {})
        return 200, {"items": [{"id": int(one), "state": "DELIVRD"}
                               for one in fields.get("ids", "").split(",") if one]}, {}


@pytest.fixture
def acme(world, tmp_path):
    """A fork with the README's class, nothing changed but the address."""
    world.acme = Acme(world.wire).start()
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = re.search(r"```python\n(class Acme.*?)```", readme, re.DOTALL)[1]
    with_operator(world, tmp_path, "Acme", lines.replace("https://acme.com", world.acme.url))
    yield world
    world.acme.stop()


def test_the_operator_of_the_readme_works_as_it_is_written(acme):
    for refused in ({"token": "wrong", "sender": "Firm"}, {"token": "right"}):
        assert Browser(acme).install(**refused).json()["error"] == "OPERATOR_KEY"
    assert Browser(acme).install(token="right", sender="Firm").status_code == 200
    ids = [send(acme, TEXT), send(acme, TEXT, "not a number 1")]
    until(lambda: one_pass(acme)["waiting"] == 0)
    assert [history(acme, one) for one in ids] == [["sent", "delivered"]] * 2
    for answer in ((200, "<html>PHP Notice</html>", {}), (504, "", {})):
        acme.acme.trouble = lambda method, path, fields, answer=answer: answer
        message_id = send(acme, "who knows")
        tried(acme.app, message_id)
        assert [line["outcome"] for line in logged(acme.app, "send", message_id)] == ["in doubt"]
    assert {fields["to"] for path, fields in acme.acme.requests if path == "/sms"} == {
        "79255070602", "1"}


CARELESS = """
class Careless(Demo):
    def send(settings, message):
        return {"unknown": ("ok", "1"), "nothing": None, "good": ("sent", 158), "word": "failed",
                "bad": ("sent", "bad"), "list": (["sent"], ""), "note": ("later", OSError("no text")),
                }[message["text"]]

    def statuses(settings, ids):
        return "", {one: {"158": "sent"}[one] for one in ids}
"""


@pytest.fixture
def careless(world, tmp_path):
    with_operator(world, tmp_path, "Careless", CARELESS.strip())
    assert install(world).status_code == 200
    return world


@pytest.mark.parametrize("mistake", ["unknown", "nothing", "raises", "word", "list"])
def test_a_mistake_in_send_is_a_doubt_tried_once_more_never_more_often(careless, mistake):
    message_id = send(careless, mistake)
    tried(careless.app, message_id)
    for _ in range(4):
        make_due(careless.app)
        one_pass(careless)
    outcomes = [line["outcome"] for line in logged(careless.app, "send", message_id)]
    assert outcomes == ["in doubt", "in doubt", "gave up"]
    assert history(careless, message_id) == ["sent", "failed"]


def test_a_mistake_in_statuses_is_seen_in_the_output_and_the_message_waits(world, tmp_path):
    with_operator(world, tmp_path, "Careless", CARELESS.strip(), STATUSES_EVERY=0.2)
    assert install(world).status_code == 200
    message_id = send(world, "bad")
    until(lambda: "KeyError: 'bad'" in world.app.output())
    assert read(world.app, message_id)["operator_id"] == "bad"
    assert world.app.running


def test_a_mistake_in_statuses_keeps_nothing_else_from_being_sent_and_reported(careless):
    bad, other = send(careless, "bad"), send(careless, "good")
    settled(careless.app, bad, other)
    change(careless.app, other, status="delivered")
    make_due(careless.app)
    assert one_pass(careless)["errors"] == {"operator": "in doubt"}
    assert history(careless, other) == ["sent", "delivered"]


def test_a_note_for_the_log_may_be_anything(careless):
    message_id = send(careless, "note")
    tried(careless.app, message_id)
    line, = logged(careless.app, "send", message_id)
    assert (line["outcome"], line["answer"]) == ("later", "no text")


def test_what_is_no_final_status_is_none(careless):
    message_id = send(careless, "good")
    settled(careless.app, message_id)
    assert read(careless.app, message_id)["operator_id"] == "158"
    make_due(careless.app)
    assert one_pass(careless)["waiting"] == 1
    assert history(careless, message_id) == ["sent"]


# ---- Receipts pushed by the operator ------------------------------------------------------------
@pytest.fixture(scope="module")
def receipts_world(tmp_path_factory):
    """DATA_DIR is reached through a link, as it may be."""
    world, link = World(), tmp_path_factory.mktemp("data") / "link"
    link.symlink_to(tmp_path_factory.mktemp("real"))
    try:
        start_fork(world.start(), "receipts", DATA_DIR=link)
        assert install(world).status_code == 200
        yield world
    finally:
        world.stop()


@pytest.fixture
def receipts(receipts_world):
    """The fork installed, nothing waiting; SMS.ru knows nothing final before a test lets it."""
    receipts_world.smsru.delay = 3600
    receipts_world.smsru.requests.clear()
    receipts_world.portal.requests.clear()
    yield receipts_world
    for path in (receipts_world.app.data / "queue").iterdir():
        path.unlink(missing_ok=True)


def push(world, *entries, key=None, app=None):
    """SMS.ru calls back: (operator id, code)s; without a key signed with the right one."""
    data = [f"sms_status\n{one}\n{code}\n{int(time.time())}" for one, code in entries]
    signed = (next(iter(world.smsru.keys)) if key is None else key) + "".join(data)
    fields = {f"data[{number}]": entry for number, entry in enumerate(data)}
    fields["hash"] = hashlib.sha256(signed.encode()).hexdigest()
    return requests.post((app or world.app).url + "receipts", fields, timeout=10)


def sent(world, text=TEXT):
    """A message at the operator: (message_id, operator's id)."""
    message_id = send(world, text)
    settled(world.app, message_id)
    return message_id, read(world.app, message_id)["operator_id"]


@pytest.mark.parametrize(("code", "status"), [
    (103, "delivered"), (110, "delivered"), (104, "undelivered"), (108, "undelivered"),
    (203, "failed")])
def test_a_receipt_reaches_the_portal_within_a_second(receipts, code, status):
    message_id, operator_id = sent(receipts)
    began = time.monotonic()
    answer = push(receipts, (operator_id, code))
    assert (answer.status_code, answer.text) == (200, "100")
    until(lambda: history(receipts, message_id) == ["sent", status], 1)
    assert time.monotonic() - began < 1
    until(lambda: not list((receipts.app.data / "queue").iterdir()), 1)
    assert not calls(receipts.smsru, "/sms/status")


def test_a_hundred_receipts_in_one_call_are_two_batches(receipts):
    ids = [one for one, _ in receipts.portal.send_many([(PHONE, TEXT)] * 100)]
    settled(receipts.app, *ids)
    assert push(receipts, *((read(receipts.app, one)["operator_id"], 103) for one in ids)).ok
    until(lambda: all(history(receipts, one) == ["sent", "delivered"] for one in ids))
    until(lambda: not list((receipts.app.data / "queue").iterdir()))
    assert len(calls(receipts.portal, "batch.json")) == 2


@pytest.mark.parametrize(("entry", "key", "status"), [
    (("right", 103), "another key", 403),
    (("right", 102), None, 200),
    (("right", "rubbish"), None, 200),
    (("000000-1", 103), None, 200),
    (("../../settings", 103), None, 200),
    (("", 103), None, 200),
])
def test_what_is_not_a_signed_final_receipt_of_ours_changes_nothing(receipts, entry, key, status):
    message_id, operator_id = sent(receipts)
    given = operator_id if entry[0] == "right" else entry[0]
    assert push(receipts, (given, entry[1]), key=key).status_code == status
    assert push(receipts).status_code == 200
    assert requests.post(receipts.app.url + "receipts", {}, timeout=10).status_code == 403
    assert history(receipts, message_id) == ["sent"]
    assert read(receipts.app, message_id)["status"] == ""
    assert (receipts.app.data / "settings.json").exists()


def test_without_a_key_nobody_signs(world):
    start_fork(world, "receipts")
    assert push(world, ("1", 103), key="").status_code == 403
    assert world.portal.fire("ONAPPINSTALL") == 200
    assert push(world, ("1", 103), key="").status_code == 403


def test_the_index_outlives_the_process(receipts):
    message_id, operator_id = sent(receipts)
    receipts.app.kill()
    receipts.app.start()
    assert push(receipts, (operator_id, 103)).text == "100"
    until(lambda: history(receipts, message_id) == ["sent", "delivered"])


def test_with_the_portal_down_the_status_is_kept_for_a_pass(receipts):
    message_id, operator_id = sent(receipts)
    receipts.portal.stop()
    assert push(receipts, (operator_id, 103)).text == "100"
    assert read(receipts.app, message_id)["status"] == "delivered"
    receipts.portal.start()
    make_due(receipts.app)
    until(lambda: make_due(receipts.app) or not one_pass(receipts)["waiting"])
    assert set(history(receipts, message_id)) == {"sent", "delivered"}
    assert not calls(receipts.smsru, "/sms/status")


def test_polling_stays_as_the_net(receipts):
    message_id, _ = sent(receipts)
    receipts.smsru.delay = 0
    assert one_pass(receipts)["delivered"] == 1
    assert history(receipts, message_id) == ["sent", "delivered"]
    assert not list((receipts.app.data / "queue").iterdir())


def test_an_uninstall_takes_the_index_along(receipts):
    sent(receipts)
    assert receipts.portal.fire("ONAPPUNINSTALL") == 200
    assert not list((receipts.app.data / "queue").iterdir())
    assert install(receipts).status_code == 200
