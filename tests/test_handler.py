"""handler.php: who may hand a message in, what is taken, and how fast the answer comes."""
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
import requests
from pretend import GOOD_KEY, World, install, until
from steps import (
    NUMBER,
    PHONE,
    Gate,
    code_of,
    doubted,
    folder_of,
    handler_url,
    logged,
    make_due,
    one_pass,
    outcomes,
    path_of,
    received,
    send,
    settled,
    stored,
    tried,
)

RIGHT = object()  # stands for the secret of the registered address


@pytest.fixture(scope="module")
def shop():
    """One installed world for the tables; each row brings a text or a message_id of its own."""
    with World() as world:
        world.start_app(RETRY_AFTER=60, STATUSES_EVERY=0)
        assert install(world).status_code == 200
        yield world


def post(world, fields, key=RIGHT, body=None):
    url = handler_url(world)
    if key is not RIGHT:
        url = url.split("?")[0] + ("" if key is None else "?key=" + key)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return requests.post(url, data=body or urlencode(fields), headers=kind, timeout=10)


def fields_of(world, an_id, text="a text", **changes):
    fields = world.portal.message_fields(PHONE, text, an_id, code_of(world))
    changes = {name.replace("__", "[") + ("]" if "__" in name else ""): value
               for name, value in changes.items()}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


# What is taken -----------------------------------------------------------------------------------

@pytest.mark.parametrize("robot", [False, True], ids=["CRM card", "robot without auth"])
@pytest.mark.parametrize("text", [
    "Ваш код подтверждения: 1234", "a=1&b=2 100% + [x] \"q\"", "emoji 🙂 й", "line\r\nline\n"])
def test_a_message_is_taken_and_reaches_the_operator_as_it_was(shop, robot, text):
    message_id = send(shop, text + str(robot), robot=robot)
    until(lambda: received(shop, text + str(robot)) == 1)
    assert shop.smsru.sent[-1]["to"] == NUMBER
    assert logged(shop.app, "handler", message_id)
    settled(shop.app, message_id)


def test_the_answer_is_what_the_readme_says(shop):
    answer = post(shop, fields_of(shop, "plain"))
    assert (answer.status_code, answer.json()) == (200, {"result": True})


@pytest.mark.parametrize(("message_id", "token"), [
    ("forged", "forged"), ("cyrillic", "ключ"), ("empty", ""), ("absent", None)])
def test_whatever_application_token_comes_the_message_is_taken(shop, message_id, token):
    """The address's secret is the proof: who forges leaves the token out, and it may change."""
    text = f"with a token that is {message_id}"
    fields = fields_of(shop, message_id, text, auth__application_token=token)
    assert post(shop, fields).status_code == 200
    settled(shop.app, message_id)
    assert received(shop, text) == 1


def test_a_changed_application_token_loses_no_message(installed):
    installed.portal.application_token = "another one from now on"
    settled(installed.app, send(installed, "after the change"))
    assert received(installed, "after the change") == 1


@pytest.mark.parametrize(("message_id", "changes"), [
    ("A.b-c_9", {}), ("9" * 128, {}), ("no-type", {"type": None, "module_id": None}),
    ("no-number", {"message_to": None, "properties__phone_number": None}),
    ("no-text", {"message_body": None, "properties__message_text": None}),
    ("words-for-a-number", {"message_to": "call me"}),
    ("long", {"message_body": "x" * 50000}), ("nul", {"message_body": "a\0b"})])
def test_the_right_secret_our_code_and_a_usable_id_are_always_taken(shop, message_id, changes):
    assert post(shop, fields_of(shop, message_id, **changes)).status_code == 200
    assert folder_of(shop.app, message_id)


@pytest.mark.parametrize(("message_id", "bad"), [("bad-utf-8", b"%FF%FE"), ("half", b"%ED%A0%80"),
                                                  ("bare", b"\xff\xfe"), ("percent", b"100%")])
def test_bytes_that_are_no_utf_8_are_taken_too(shop, message_id, bad):
    body = urlencode(fields_of(shop, message_id, message_body="TEXT")).encode()
    assert post(shop, None, body=body.replace(b"TEXT", bad)).status_code == 200
    assert folder_of(shop.app, message_id)


# What is refused ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("key", "changes", "status", "code"), [
    (None, {}, 403, "WRONG_KEY"), ("", {}, 403, "WRONG_KEY"), ("wrong", {}, 403, "WRONG_KEY"),
    ("%FF%00", {}, 403, "WRONG_KEY"), ("%D0%BA%D0%BB%D1%8E%D1%87", {}, 403, "WRONG_KEY"),
    (RIGHT, {"code": "other"}, 400, "WRONG_CODE"), (RIGHT, {"code": None}, 400, "WRONG_CODE"),
    *[(RIGHT, {"message_id": one}, 400, "WRONG_MESSAGE_ID")
      for one in (None, "", ".", "..", "../up", "a/b", "/etc/x", "a\\b", ".hidden", "a b", "a\0",
                  "a\n", "ключ", "x" * 300)]])
def test_what_is_refused_is_neither_saved_nor_sent(shop, key, changes, status, code):
    until(lambda: not under_way(shop.app), message="the tests before have not ended")
    before = kept(shop.app)
    answer = post(shop, fields_of(shop, "refused", "a refused text", **changes), key)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["error_description"]
    assert kept(shop.app) == before
    assert not received(shop, "a refused text")


def under_way(app):
    return [path for path in app.queue() if path.parent.name in ("new", "sending")]


def kept(app):
    """Every file under DATA_DIR but those that are just being written."""
    return {path for path in app.data.rglob("*") if path.suffix != ".tmp"}


def test_before_the_installation_the_handler_says_so(world, app):
    fields = world.portal.message_fields(PHONE, "early", "early", "any")
    for key in ("", "?key=", "?key=x"):
        answer = requests.post(app.url + "handler" + key, data=fields, timeout=10)
        assert (answer.status_code, answer.json()["error"]) == (503, "NOT_INSTALLED")
    assert not app.queue()


def test_a_get_is_refused(shop):
    answer = requests.get(handler_url(shop), timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (405, "HTTP_405")


@pytest.mark.parametrize(("headers", "body", "status", "code"), [
    ("Content-Length: 200000", b"message_id=large", 413, "TOO_LARGE"),
    ("Content-Length: 102401", b"", 413, "TOO_LARGE"),
    ("Transfer-Encoding: chunked", b"5\r\nab=cd\r\n0\r\n\r\n", 413, "TOO_LARGE"),
    ("Content-Length: -1", b"", 413, "TOO_LARGE"), ("Content-Length: x", b"", 413, "TOO_LARGE"),
    ("Content-Length: 50000", None, 400, "INCOMPLETE")])
def test_a_body_is_refused_before_it_is_read_or_when_it_is_cut(shop, headers, body, status, code):
    path = handler_url(shop).split("/", 3)[3]
    if body is None:
        body = urlencode(fields_of(shop, "cut")).encode()
    with socket.create_connection(("127.0.0.1", int(shop.app.env["PORT"])), 10) as one:
        head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n"
        one.sendall(head.encode() + body)
        if code == "INCOMPLETE":
            one.shutdown(socket.SHUT_WR)
        head, _, rest = one.makefile("rb").read().partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(rest)["error"] == code
    assert not folder_of(shop.app, "cut")


# Answer first ------------------------------------------------------------------------------------

def test_the_answer_does_not_wait_for_the_operator(shop):
    gate = Gate(shop.smsru, "/sms/send")
    texts = [f"patience {number}" for number in range(30)]
    ids = [send(shop, text) for text in texts]  # each 200 came while the operator was silent
    until(lambda: gate.asked)
    assert not any(received(shop, text) for text in texts)
    assert set(ids) <= set(stored(shop.app))
    gate.open.set()
    settled(shop.app, *ids)
    assert [received(shop, text) for text in texts] == [1] * len(texts)


def test_a_burst_of_150_connections_is_taken_whole(shop):
    texts = [f"burst {number}" for number in range(150)]
    with ThreadPoolExecutor(150) as connections:
        ids = list(connections.map(lambda text: send(shop, text), texts))
    settled(shop.app, *ids)
    assert [received(shop, text) for text in texts] == [1] * len(texts)


def test_what_the_sender_did_not_get_to_is_sent_by_the_next_pass(installed):
    gate = Gate(installed.smsru, "/sms/send")
    texts = [f"left over {number}" for number in range(30)]
    ids = [send(installed, text) for text in texts]
    until(lambda: gate.asked)
    installed.app.kill()
    installed.smsru.trouble = None
    gate.open.set()
    installed.app.start()

    def everything_is_sent():
        one_pass(installed)
        return all(received(installed, text) for text in texts)
    until(everything_is_sent)
    assert set(stored(installed.app)) <= set(ids)


# A clean stop ------------------------------------------------------------------------------------

def eight_at_the_operator(world, texts):
    """Send these, and wait until eight are held there. Out: their ids, the gate."""
    first = Gate(world.smsru, "/sms/send")
    ids = [send(world, texts[0])]
    until(lambda: first.asked)
    ids += [send(world, text) for text in texts[1:]]
    second = Gate(world.smsru, "/sms/send")  # their round, and its first goes alone
    first.open.set()
    until(lambda: second.asked)
    gate = Gate(world.smsru, "/sms/send")
    second.open.set()
    until(lambda: len(gate.asked) == 8, message="there are no 8 at a time")
    return ids, gate


def test_sigterm_finishes_what_is_being_sent_and_keeps_the_rest(installed):
    app, texts = installed.app, [f"at the end {number}" for number in range(20)]
    ids, gate = eight_at_the_operator(installed, texts)
    app.process.terminate()
    until(lambda: not listens(app), message="it still listens")
    gate.open.set()
    assert app.process.wait(10) == 0
    assert set(stored(app)) == set(ids)
    done = [one for one in stored(app).values() if one["operator_id"]]
    assert len(done) == len(installed.smsru.sent) == 10
    app.start()
    make_due(app)
    one_pass(installed)
    assert sorted(one["msg"] for one in installed.smsru.sent) == sorted(texts)
    assert not [one for one in ids if doubted(app, one)]


def listens(app):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(app.env["PORT"]))) == 0


def test_a_message_saved_while_the_app_ends_is_answered_200(installed):
    """Bitrix24 never asks again: an error would say that it was not taken."""
    app, gate = installed.app, Gate(installed.smsru, "/sms/send")
    send(installed, "busy")
    until(lambda: gate.asked)
    body = urlencode(fields_of(installed, "late", "late")).encode()
    place = handler_url(installed).partition(app.url)[2]
    with socket.create_connection(("127.0.0.1", int(app.env["PORT"]))) as late:
        late.sendall(f"POST /{place} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert requests.get(app.url, timeout=10).ok  # who comes later is served: it was accepted
        app.process.terminate()
        until(lambda: not listens(app))
        late.sendall(body)
        assert b" 200 " in late.recv(15)
    assert path_of(app, "late").exists()
    gate.open.set()
    assert app.process.wait(10) == 0


def test_sigterm_ends_a_pass_after_the_message_in_hand(world):
    app = world.start_app(RETRY_AFTER=60, STATUSES_EVERY=0.5)
    assert install(world).status_code == 200
    world.smsru.down = True
    ids = [send(world, f"pass {number}") for number in range(10)]
    tried(app, ids[0])
    app.kill()
    world.smsru.down, world.smsru.slow = False, 1
    make_due(app)
    app.start()
    until(lambda: world.smsru.sent)
    app.process.terminate()
    assert app.process.wait(4) == 0
    assert len(app.queue()) == 10


# What the log says -------------------------------------------------------------------------------

def story(app, message_id, lines):
    """What these lines say about one message: [(type, what became of it)], in their order."""
    return [(line["type"], line.get("outcome") or line.get("status"))
            for line in map(json.loads, lines) if line.get("message_id") == message_id]


def test_every_message_can_be_followed_by_its_id(installed):
    app, operator = installed.app, installed.smsru
    operator.delay, operator.codes = 0, {"79250000009": 202}
    good, bad = send(installed, "a capybara"), send(installed, "a capybara", "+79250000009")
    settled(app, good)
    tried(app, bad)
    while one_pass(installed)["waiting"]:
        make_due(app)
    log = (app.data / "logs" / "app.log").read_text("utf-8").splitlines()
    taken = ("handler", None)
    assert story(app, good, log) == [taken, ("send", "sent"), ("told", "delivered")]
    assert story(app, bad, log) == [taken, ("send", "failed"), ("told", "failed")]
    assert logged(app, "send", good)[0]["note"] == operator.sent[0]["sms_id"]
    assert logged(app, "send", bad)[0]["note"] == "202"
    assert all(line in app.output().splitlines() for line in log), "the terminal shows less"


def test_no_text_no_full_number_and_no_secret_is_in_the_log_or_the_output(installed):
    app, operator = installed.app, installed.smsru
    operator.codes = {"79250000009": 202}
    ids = [send(installed, "a capybara", to) for to in (PHONE, "+7 925 000-00-09", "no digits")]
    for message_id in ids:
        tried(app, message_id)
    one_pass(installed)
    written = (app.data / "logs" / "app.log").read_text("utf-8") + app.output()
    assert [outcomes(app, one) for one in ids] == [["sent"], ["failed"], ["failed"]]
    secrets = ["capybara", NUMBER, NUMBER[1:], PHONE, "9250000009", "000-00-09", GOOD_KEY,
               handler_url(installed).partition("key=")[2], *installed.oauth.tokens]
    assert [one for one in secrets if one in written] == []


@pytest.mark.parametrize(("blocked", "logs"), [("1", False), ("0", True), (None, True)])
def test_there_is_a_log_unless_it_is_blocked(world, blocked, logs):
    app = world.start_app(C_REST_BLOCK_LOG=blocked, STATUSES_EVERY=0)
    assert install(world).status_code == 200
    message_id = send(world, "a line")
    settled(app, message_id)
    one_pass(world)
    assert bool(list(app.data.glob("logs/*.log"))) == logs
    assert (message_id in app.output()) == logs
