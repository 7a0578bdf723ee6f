"""The forks of tests/forks: each runs as its own process and overrides only what the seams name."""
import base64
import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from pretend import ROOT, TEXT, App, Browser, World, install, until
from pretend.twilio import BASE, KEYS, NUMBER, SID, TOKEN, Twilio
from pretend.wire import Party
from steps import (
    PHONE,
    Gate,
    calls,
    change,
    folder_of,
    forget,
    logged,
    make_due,
    one_pass,
    outcomes,
    read,
    send,
    settled,
    tried,
)

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
    forget(one_world.app)


def test_the_form_asks_for_the_three_fields_and_the_page_masks_the_secret_one(twilio):
    browser = Browser(twilio)
    browser.open("install")
    assert {name: browser.form.fields[name] for name in KEYS} == dict.fromkeys(KEYS, "")
    assert "api_key" not in browser.form.fields
    page = browser.open("index").text
    assert [word for word in (SID, NUMBER, "••••") if word not in page] == []
    assert TOKEN not in page


def test_the_providers_name_and_the_start_up_line_do_not_say_demo(twilio):
    assert "demo" not in str(twilio.portal.senders)
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
    asked = [path for path, _ in twilio.twilio.requests]
    assert all(re.match("/2010-04-01/Accounts/AC[0-9a-f]{32}", path) for path in asked)


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


def test_an_id_that_twilio_does_not_know_holds_up_no_other(twilio):
    ids = [send(twilio, TEXT) for _ in range(2)]
    settled(twilio.app, *ids)
    unknown = read(twilio.app, ids[0])["operator_id"]
    twilio.twilio.sent[:] = [one for one in twilio.twilio.sent if one["sid"] != unknown]
    totals = one_pass(twilio)
    assert (totals["delivered"], totals["waiting"], totals["errors"]) == (1, 1, {})
    assert folder_of(twilio.app, ids[0]) == "sent"


def test_whoever_answers_in_twilios_place_ends_no_message(twilio):
    twilio.twilio.trouble = lambda method, path, fields: (403, "<html>Forbidden</html>", {})
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    until(lambda: make_due(twilio.app) or (
        one_pass(twilio) and len(outcomes(twilio.app, message_id)) > 2))
    assert set(outcomes(twilio.app, message_id)) == {"down"}
    assert folder_of(twilio.app, message_id) == "new"


@pytest.mark.parametrize(("refusal", "outcome"), [
    ((400, 21211), "failed"), ((400, 21610), "failed"), ((401, 20003), "key"),
    ((400, 21606), "key"), ((429, 20429), "busy"), ((429, 63038), "limit"), ((503, 20503), "down"),
])
def test_twilios_codes_become_outcomes(twilio, refusal, outcome):
    twilio.twilio.refuse = refusal
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    line, = logged(twilio.app, "send", message_id)
    assert (line["outcome"], line["note"]) == (outcome, str(refusal[1]))
    assert folder_of(twilio.app, message_id) == ("failed" if outcome == "failed" else "new")


def test_an_operator_that_is_down_keeps_the_message_waiting(twilio):
    twilio.twilio.stop()
    message_id = send(twilio, TEXT)
    tried(twilio.app, message_id)
    twilio.twilio.start()
    until(lambda: make_due(twilio.app) or (
        one_pass(twilio) and "sent" in outcomes(twilio.app, message_id)))  # maybe by the sender before
    assert outcomes(twilio.app, message_id) == ["down", "sent"]
    assert read(twilio.app, message_id)["operator_id"].startswith("SM")


@pytest.mark.parametrize("lost", [
    None, (200, "<html>PHP Notice</html>", {}), (201, "", {}), (201, {"status": "queued"}, {}),
    (500, {"code": 20500}, {}), (504, {"message": "Endpoint request timed out"}, {})])
def test_silence_after_acceptance_is_in_doubt_and_tried_once_more(twilio, lost):
    def trouble(method, path, fields):
        if method == "POST" and not lost:
            raise ConnectionResetError
        return lost if method == "POST" else None
    twilio.twilio.trouble = trouble
    message_id = send(twilio, "in doubt")
    tried(twilio.app, message_id)
    until(lambda: make_due(twilio.app) or not one_pass(twilio)["waiting"])
    assert outcomes(twilio.app, message_id) == ["in doubt", "in doubt"]
    assert len(calls(twilio.twilio, "/Messages.json")) == 2
    assert history(twilio, message_id) == ["sent", "failed"]
    assert bool(logged(twilio.app, "mistake")) == (not lost)  # silence raises, nothing else


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
    before, table, after = re.split(r"^(OPERATORS = \{.*)\}$", source, flags=re.MULTILINE)
    forked = f'{before}{lines}\n\n\n{table}, "{name.lower()}": {name}}}{after}'
    (folder / "app.py").write_text(forked, "utf-8")
    (folder / "views").symlink_to(ROOT / "views")
    start_fork(world, folder / "app.py", SMS_OPERATOR=name.lower(), **env)


class Acme(Party):
    """What the README's example talks to: it knows a message by our id when that comes again."""

    name = "acme"

    def __init__(self, wire):
        super().__init__(wire)
        self.ids = []

    def answer(self, method, path, fields, request):
        given = request.headers.get("Authorization", "").partition("Basic ")[2]
        if base64.b64decode(given) != b"firm:right":
            return 401, {"message": "wrong login"}, {}
        if (method, path) == ("GET", "/balance"):
            return 200, {"balance": 100}, {}
        if (method, path) == ("POST", "/sms"):
            if not fields["to"].isdigit():
                return 400, {"message": "wrong number"}, {}
            self.ids += [fields["id"]] * (fields["id"] not in self.ids)
            return 200, {"id": f"acme-{self.ids.index(fields['id'])}"}, {}
        words = {f"acme-{number}": "DELIVRD" for number in range(len(self.ids))}
        return 200, {"states": {one: words[one] for name, one in fields.items()
                                if name.startswith("ids[")}}, {}


@pytest.fixture
def acme(world, tmp_path):
    """A fork with the README's class, nothing changed but the address."""
    world.acme = Acme(world.wire).start()
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = re.search(r"```python\n(class Acme.*?)```", readme, re.DOTALL)[1].rstrip()
    with_operator(world, tmp_path, "Acme", lines.replace("https://acme.com", world.acme.url))
    yield world
    world.acme.stop()


def test_the_operator_of_the_readme_works_as_it_is_written(acme):
    for refused in ({"login": "firm", "token": "wrong"}, {"token": "right"}):
        assert Browser(acme).install(**refused).json()["error"] == "OPERATOR_KEY"
    assert Browser(acme).install(login="firm", token="right").status_code == 200
    ids = [send(acme, TEXT), send(acme, TEXT, "not a number 1")]
    until(lambda: one_pass(acme)["waiting"] == 0)
    assert [history(acme, one) for one in ids] == [["sent", "delivered"]] * 2
    assert acme.acme.ids == ids
    assert {fields["to"] for path, fields in acme.acme.requests if path == "/sms"} == {
        "79255070602", "1"}


@pytest.mark.parametrize(("answer", "outcome"), [
    ((200, "<html>PHP Notice</html>", {}), "in doubt"), ((504, "", {}), "in doubt"),
    ((503, "", {}), "down"), ((429, {}, {}), "busy"), ((402, {}, {}), "money"),
    ((401, {}, {}), "key")])
def test_what_the_readmes_operator_makes_of_trouble_and_our_id_makes_a_doubt_harmless(
        acme, answer, outcome):
    assert Browser(acme).install(login="firm", token="right").status_code == 200
    acme.acme.trouble = lambda method, path, fields: answer
    message_id = send(acme, TEXT)
    tried(acme.app, message_id)
    acme.acme.trouble = None
    until(lambda: make_due(acme.app) or (
        one_pass(acme) and "sent" in outcomes(acme.app, message_id)))  # maybe by the sender before
    assert outcomes(acme.app, message_id) == [outcome, "sent"]
    assert acme.acme.ids == [message_id]


CARELESS = """class Careless(Demo):
    def statuses(settings, ids):
        return "", {one: {}[one] for one in ids}"""


def test_a_mistake_in_statuses_ends_no_passes_and_is_seen_in_the_output(world, tmp_path):
    """What else a class may do wrong is in test_seam.py."""
    with_operator(world, tmp_path, "Careless", CARELESS, STATUSES_EVERY=0.2)
    assert install(world).status_code == 200
    message_id = send(world, "its status is a mistake", "+7 925 000-00-00")
    until(lambda: world.app.output().count('"error": "KeyError"') > 1 or make_due(world.app))
    assert folder_of(world.app, message_id) == "sent"
    assert world.app.running


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
    receipts_world.smsru.delay = 0
    receipts_world.portal.trouble = None
    forget(receipts_world.app)


def push(world, *entries, key=None, app=None):
    """SMS.ru calls back: (operator id, code)s; without a key signed with the right one."""
    data = [f"sms_status\n{one}\n{code}\n{int(time.time())}" for one, code in entries]
    signed = (next(iter(world.smsru.keys)) if key is None else key) + "".join(data)
    fields = {f"data[{number}]": entry for number, entry in enumerate(data)}
    fields["hash"] = hashlib.sha256(signed.encode()).hexdigest()
    return requests.post((app or world.app).url + "receipts", fields, timeout=10)


def index(world):
    """The operator's ids by which a receipt finds its message."""
    return {path.name for path in (world.app.data / "receipts").iterdir()}


def sent(world, *message_ids):
    """Wait until the operator has these messages, or one more: [(message_id, operator's id)]."""
    message_ids = message_ids or [send(world, TEXT)]
    settled(world.app, *message_ids)
    pairs = [(one, read(world.app, one)["operator_id"]) for one in message_ids]
    until(lambda: index(world) >= {operator_id for _, operator_id in pairs})
    return pairs


@pytest.mark.parametrize(("code", "status"), [
    (103, "delivered"), (110, "delivered"), (104, "undelivered"), (108, "undelivered"),
    (203, "failed")])
def test_a_receipt_reaches_the_portal_within_a_second(receipts, code, status):
    (message_id, operator_id), = sent(receipts)
    began = time.monotonic()
    answer = push(receipts, (operator_id, code))
    assert (answer.status_code, answer.text) == (200, "100")
    assert history(receipts, message_id) == ["sent", status]
    assert time.monotonic() - began < 1
    assert not receipts.app.queue()
    assert not calls(receipts.smsru, "/sms/status")


def test_a_hundred_receipts_in_one_call_are_two_batches(receipts):
    ids = [one for one, _ in receipts.portal.send_many([(PHONE, TEXT)] * 100)]
    pairs = sent(receipts, *ids)
    assert push(receipts, *((operator_id, 103) for _, operator_id in pairs)).text == "100"
    assert [history(receipts, one) for one in ids] == [["sent", "delivered"]] * 100
    assert not receipts.app.queue()
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
    (message_id, operator_id), = sent(receipts)
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
    (message_id, operator_id), = sent(receipts)
    receipts.app.kill()
    receipts.app.start()
    assert push(receipts, (operator_id, 103)).text == "100"
    assert history(receipts, message_id) == ["sent", "delivered"]


def test_a_repeated_receipt_changes_nothing_even_if_the_portal_reuses_the_message_id(receipts):
    (message_id, operator_id), = sent(receipts)
    assert push(receipts, (operator_id, 103), (operator_id, 104)).text == "100"
    assert history(receipts, message_id) == ["sent", "delivered"]
    send(receipts, "a genuine resend", message_id=message_id)
    sent(receipts, message_id)
    assert push(receipts, (operator_id, 104)).text == "100"
    assert history(receipts, message_id) == ["sent"]
    assert read(receipts.app, message_id)["status"] == ""


def test_while_a_pass_is_under_way_a_receipt_is_to_come_again(receipts):
    """A pass may be reading the very file. SMS.ru repeats each minute what was not taken."""
    (told, _), (other, other_id) = sent(receipts, send(receipts, "1"), send(receipts, "2"))
    change(receipts.app, told, status="delivered")
    gate = Gate(receipts.portal, "batch.json")
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(one_pass, receipts)
        until(lambda: gate.asked)
        assert push(receipts, (other_id, 103)).status_code == 503
        gate.open.set()
        assert passing.result()["delivered"] == 1
    assert read(receipts.app, other)["status"] == ""
    assert push(receipts, (other_id, 103)).text == "100"
    assert [history(receipts, one) for one in (told, other)] == [["sent", "delivered"]] * 2


def test_a_status_is_on_disk_before_the_portal_is_told(receipts):
    (message_id, operator_id), = sent(receipts)
    gate = Gate(receipts.portal, "batch.json")
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(push, receipts, (operator_id, 103))
        until(lambda: gate.asked)
        receipts.app.kill()
        gate.open.set()
        assert pushing.exception()
    receipts.portal.trouble = None
    assert read(receipts.app, message_id)["status"] == "delivered"
    receipts.app.start()
    assert one_pass(receipts)["delivered"] == 1
    assert not calls(receipts.smsru, "/sms/status")


def test_with_the_portal_down_the_status_is_kept_for_a_pass(receipts):
    (message_id, operator_id), = sent(receipts)
    receipts.portal.stop()
    assert push(receipts, (operator_id, 103)).text == "100"
    assert read(receipts.app, message_id)["status"] == "delivered"
    receipts.portal.start()
    until(lambda: make_due(receipts.app) or not one_pass(receipts)["waiting"])
    assert history(receipts, message_id) == ["sent", "delivered"]
    assert not calls(receipts.smsru, "/sms/status")


def test_polling_stays_as_the_net_and_what_has_left_leaves_the_index(receipts):
    (message_id, _), = sent(receipts)
    receipts.smsru.delay = 0
    assert one_pass(receipts)["delivered"] == 1
    assert history(receipts, message_id) == ["sent", "delivered"]
    assert not receipts.app.queue()
    one_pass(receipts)
    assert index(receipts) == set()


def test_what_an_uninstall_cleared_leaves_the_index_with_the_next_pass(receipts):
    (_, operator_id), = sent(receipts)
    assert receipts.portal.fire("ONAPPUNINSTALL", CLEAN=1) == 200
    assert not receipts.app.queue()
    assert install(receipts).status_code == 200
    assert push(receipts, (operator_id, 103)).text == "100"
    one_pass(receipts)
    assert index(receipts) == set()
