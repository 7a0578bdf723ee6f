"""Hostile input and hostile answers: more than 10,000 generated ones, and the rules after each.

One installed app answers them all; what it must never do is in hostile.py, class Home.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import pytest
from hostile import (
    ACCESS,
    CODE,
    KEY,
    MOST,
    NUMBER,
    REFRESH,
    STRANGERS,
    TEXT,
    TOKEN,
    Home,
    encode,
    exchange,
    post,
    watched,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretend import GOOD_KEY, World
from steps import FOLDERS, folder_of

RULES = settings(derandomize=True, deadline=None, database=None, print_blob=False,
                 report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
POOL = ThreadPoolExecutor(4)


@pytest.fixture(scope="module")
def home():
    world, folder = World(), tempfile.mkdtemp(prefix="hostile-")
    try:
        yield Home(world.start(), folder)
    finally:
        world.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def silent(home):
    """A connection to the app that says nothing, and when it was opened."""
    with socket.create_connection(("127.0.0.1", int(home.app.env["PORT"]))) as line:
        yield line, time.monotonic()


@pytest.mark.usefixtures("silent")
def test_the_watch_sees_what_it_is_there_for(tmp_path):
    env, notes = watched(tmp_path)
    deeds = ["open({0!r}, 'w')", "os.mkdir({0!r})", "os.rename('/dev/null', {0!r})",
             "socket.create_connection(('192.0.2.1', 80))", "socket.getaddrinfo('example.com', 1)"]
    for deed in deeds:
        code = "import os, socket; " + deed.format(str(tmp_path / "outside"))
        assert subprocess.run([sys.executable, "-c", code], env={**os.environ, **env},
                              stderr=subprocess.DEVNULL, check=False).returncode == 1, deed
    with open(notes) as file:
        assert len(file.readlines()) == len(deeds)
    assert not (tmp_path / "outside").exists()


# Generated inputs: each strategy makes (pieces to send, what its rule wants to know) -------------

KINDS = st.sampled_from(["form"] * 4 + ["json", "multipart", "plain", "cp1251", "utf-16"])

WORDS = st.one_of(
    st.text(max_size=12), st.binary(max_size=12).map(lambda data: data.decode("latin-1")),
    st.sampled_from(["../../x", "..\\x", "a\0b", "x" * 300, "", ".", "..", "/etc/passwd", "-", "_",
                     "%2e%2e%2f", "x.json", "x.tmp", "идентификатор", "<script>alert(1)</script>",
                     "'\"><b>", "\r\nX-Evil: 1", "{{1+1}}", "% import os", "${x}", "😀", "٣٤٥"]))
NAMES = st.one_of(WORDS, st.sampled_from([
    "code", "message_id", "message_id[]", "message_id[0][x]", "message_to", "message_body", "key",
    "event", "DOMAIN", "AUTH_ID", "REFRESH_ID", "LANG", "PROTOCOL", "member_id", "api_key",
    "auth[application_token]", "auth[access_token]", "auth[domain]", "auth[[x]]", "auth[",
    "properties[phone_number]", "bindings[0][OWNER_ID]", "data[CLEAN]", "a" + "[b]" * 50]))
FIELDS = st.lists(st.tuples(NAMES, WORDS), max_size=3).map(dict)
PATHS = st.one_of(
    st.sampled_from(["/", "/index", "/install", "/save", "/handler", "/statuses", "/checkserver"]),
    WORDS.map(lambda word: "/" + quote(word.encode("utf-8", "replace"))),
    st.sampled_from(["//handler", "/handler/", "/%FF%FE", "/%00", "*", "http://x.example/handler",
                     "/data/settings.json", "/views/../data/settings.json", "/static/%2e%2e/x"]))
METHODS = st.sampled_from(["GET"] * 3 + ["POST"] * 4 + ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH",
                                                       "TRACE", "PROPFIND", "get", "X" * 40, "Я"])
HEADERS = st.lists(st.one_of(
    st.tuples(st.sampled_from(["Cookie", "Accept", "X-Forwarded-Host", "Origin", "Range",
                               "Authorization", "Expect", "Accept-Encoding", "X-HTTP-Method"]),
              WORDS.map(lambda word: re.sub(r"[\r\n]", "", word))),
    st.just(("Transfer-Encoding", "chunked")), st.just(("Connection", "keep-alive")),
    st.just(("Content-Encoding", "gzip"))), max_size=1)
LENGTHS = st.one_of(st.none(), st.none(), st.integers(-5, 2 * MOST), st.sampled_from(
    ["", "ten", "1e2", "²", "0x10", "+5", "1_0", "5, 5", "9" * 30]))


@st.composite
def any_request(draw):
    """Any method, path, query, headers and body; announced length and true one may differ."""
    fields = draw(FIELDS)
    body, kind = encode(fields, draw(KINDS))
    body = draw(st.one_of(st.just(body), st.just(body), st.binary(max_size=40), st.just(
        b"[" * 5000)))
    path = draw(PATHS) + draw(st.sampled_from(["", "?"])) + urlencode(fields, errors="replace")
    more = "".join(f"{name}: {value}\r\n" for name, value in draw(HEADERS))
    raw = post(path, body, kind, draw(LENGTHS), more, draw(METHODS))
    return [raw], True


@st.composite
def slow_or_cut(draw):
    """A body that comes in pieces, or not whole."""
    fields = {"code": CODE, "message_id": draw(WORDS), "message_body": TEXT * 9}
    body = encode(fields, "form")[0]
    pieces = draw(st.integers(1, 4))
    raw = post("/handler?key=" + draw(st.sampled_from([KEY, "x"])), body, more=draw(
        st.sampled_from(["", "Connection: close\r\n"])))
    raw = raw[:draw(st.integers(1, len(raw)))]
    size = len(raw) // pieces + 1
    return [raw[start:start + size] for start in range(0, len(raw), size)], b"\r\n\r\n" in raw


@st.composite
def any_message(draw):
    """The right key, and anything else: what is accepted must be a file in the queue."""
    codes = [CODE] * 6 + ["", "other", CODE.upper(), CODE + "\0"]
    fields = {"code": draw(st.sampled_from(codes)),
              "message_id": draw(st.one_of(WORDS, st.from_regex(r"[\w.-]{1,140}", fullmatch=True))),
              "message_to": draw(st.one_of(WORDS, st.just("+7"))) + NUMBER,
              "message_body": TEXT + draw(WORDS), **draw(FIELDS)}
    if draw(st.integers(0, 3)) == 0:
        fields["auth[application_token]"] = draw(st.one_of(WORDS, st.just(TOKEN)))
    outside = {name: fields.pop(name) for name in draw(
        st.sampled_from([(), (), (), ("code",), ("code", "message_id")]))}
    body, kind = encode(fields, draw(KINDS))
    query, told = urlencode(outside, errors="replace"), kind == "application/x-www-form-urlencoded"
    return [post(f"/handler?key={KEY}&{query}", body, kind)], told and {**outside, **fields}


@st.composite
def any_proof(draw):
    """A usable message and the right key, whatever the call says besides about where it is from."""
    message_id = draw(st.uuids()).hex
    fields = {"code": CODE, "message_id": message_id, "message_to": "+7" + NUMBER,
              "message_body": TEXT}
    proofs = ["auth[application_token]", "auth[application_token][]", "auth[member_id]", "auth",
              "auth[domain]", "auth[access_token]", "auth[user_id]", "APPLICATION_TOKEN"]
    words = st.one_of(WORDS, st.sampled_from([TOKEN, TOKEN[:-1], TOKEN + "x", *STRANGERS]))
    fields.update(draw(st.dictionaries(st.sampled_from(proofs), words, max_size=4)))
    return [post(f"/handler?key={KEY}", *encode(fields, "form"))], message_id


@st.composite
def wrong_key(draw):
    """Wrong, empty, absent and not ASCII; whatever else is right."""
    word = draw(WORDS)
    key = draw(st.sampled_from([
        "key=" + quote(word.encode("utf-8", "replace")), "", "key=", f"Key={KEY}",
        f"key[]={KEY}", f"key={KEY}%00", f"key=%20{KEY}", f"key={KEY}x", f"key={KEY}&key=", KEY,
        f"key={KEY[:-1]}", "key=%FF%FE"]))
    if draw(st.booleans()):
        path = draw(st.sampled_from(["/statuses", "/checkserver"]))
        return [post(f"{path}?{key}", b"", method="GET")], None
    fields = {"code": CODE, "message_id": "stranger", "message_body": TEXT + word}
    body, kind = encode(fields, draw(st.sampled_from(["form", "form", "json", "multipart"])))
    return [post("/handler?" + key, body, kind)], None


@st.composite
def forged_frame(draw):
    """Somebody else's token, host, application, portal; an employee; or no proof at all."""
    token, word = draw(st.one_of(WORDS, st.sampled_from(STRANGERS))), draw(WORDS)
    other = draw(WORDS)
    host = draw(st.sampled_from(["stranger.example", "127.0.0.2:81", "x@y", "a b", "\n", "я"]))
    fields = {"DOMAIN": host, "SERVER_ENDPOINT": f"http://{host}/rest/", "LANG": other,
              "PROTOCOL": draw(st.sampled_from(["0", "1", "x"])), "APP_SID": word,
              "AUTH_ID": token, "REFRESH_ID": word, "APPLICATION_TOKEN": other,
              "member_id": word, "api_key": other, "auth[access_token]": token,
              "auth[refresh_token]": word, "auth[application_token]": other,
              "auth[domain]": host, "auth[client_endpoint]": f"http://{host}/rest/",
              "auth[server_endpoint]": f"http://{host}/rest/", "data[CLEAN]": "1"}
    for name in draw(st.sets(st.sampled_from(sorted(fields)), max_size=4)):
        del fields[name]
    path = draw(st.sampled_from(["/install", "/index", "/", "/save", "/save", "event", "event"]))
    if path == "event":
        path, fields["event"] = "/install", draw(st.one_of(WORDS, st.sampled_from(
            ["ONAPPINSTALL", "ONAPPUPDATE", "ONAPPUNINSTALL", "onappuninstall",
             "ONAPPUNINSTALL "])))
    body, kind = encode(fields, draw(KINDS))
    more = draw(st.sampled_from(["", f"X-Forwarded-Host: {host.strip()}\r\n"]))
    return [post(path, body, kind, more=more)], path


@st.composite
def any_size(draw):
    """Up to 10 MiB, announced truly."""
    size = draw(st.one_of(st.integers(MOST - 300, MOST + 300), st.integers(100, 10 * 1024 * 1024)))
    start = f"code={CODE}&message_id=size&message_to=x&message_body={TEXT}".encode()
    path = draw(st.sampled_from([f"/handler?key={KEY}", "/install", "/save", "/", "/nowhere"]))
    return [post(path, start, length=size), size - len(start)], size


def check_any(home, whole, status, body, error):
    """Half a head may be answered without a status line, or not at all."""
    assert status > 0 or not whole


def check_message(home, fields, status, body, error):
    """What was accepted is a file of that name in the queue, and nothing else came of it."""
    other_key = fields is False or "key" in fields  # the body may name one as well
    assert status in (200, 400, 413) or (status == 403 and other_key), status
    queue = home.app.data / "queue"
    assert set(os.listdir(queue)) == set(FOLDERS)
    waiting = {name for folder in FOLDERS for name in os.listdir(queue / folder)}
    assert not [name for name in waiting if not re.fullmatch(r"\w[\w.-]*\.json", name)]
    assert status != 200 or not fields or fields["message_id"] + ".json" in waiting


def check_proof(home, message_id, status, body, error):
    """The key alone decides, so nothing else in the call can lose the message."""
    assert (status, folder_of(home.app, message_id) in FOLDERS) == (200, True)


def check_key(home, fact, status, body, error):
    assert (status, error) == (403, "WRONG_KEY")


def check_frame(home, path, status, body, error):
    """Anybody may get a page; /save and the events do nothing."""
    assert status == 403 or (status == 200 and path != "/save" and body.lstrip()[:1] == b"<"), body


def check_size(home, size, status, body, error):
    """Too much is refused; whoever goes on sending may find the line cut."""
    assert status in ((0, 404, 413) if size > MOST else (200, 403, 404)), status


INPUTS = {  # strategy, its rule, how many inputs
    "requests": (any_request(), check_any, 2700), "slow": (slow_or_cut(), check_any, 200),
    "messages": (any_message(), check_message, 2700), "proofs": (any_proof(), check_proof, 800),
    "keys": (wrong_key(), check_key, 1600),
    "frames": (forged_frame(), check_frame, 2000), "sizes": (any_size(), check_size, 60)}
ONCE = 10  # inputs that are sent together


@pytest.mark.parametrize("kind", INPUTS)
def test_no_input_breaks_a_rule(home, kind):
    strategy, rule, wanted = INPUTS[kind]
    home.heal()
    home.operator_lies, sent, before = False, [], home.state()

    def send(one):
        answer = exchange(home, one[0], 0.005 if kind == "slow" else 0)
        rule(home, one[1], *answer, home.judge(one[0][0].decode("latin-1"), answer)[1])

    @settings(RULES, max_examples=wanted // ONCE)
    @given(st.lists(strategy, min_size=ONCE, max_size=ONCE))
    def attack(inputs):
        with home.rules():
            sent.extend(POOL.map(send, inputs))
            assert home.state() == before

    attack()
    assert len(sent) >= wanted
    home.drain()


# Hostile answers ---------------------------------------------------------------------------------

WORDS_OF_IT = f"{TEXT} +7{NUMBER}"  # an answer that repeats what it should not
AWAY = ["https://stranger.example/rest/", "http://stranger.example/", "//stranger.example/x",
        "http://127.0.0.1.stranger.example/", "http://127.0.0.1:1@stranger.example/rest/",
        "https://127.0.0.1@stranger.example/", "http://[", "http://127.0.0.1:99999/", "/x", "", "x"]
LETTERS = st.text(st.characters(), max_size=20)  # half a surrogate pair as well
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), LETTERS, st.sampled_from(
        ["OK", "ERROR", 100, 103, 200, 201, 231, 10 ** 400, "x" * 5000, AWAY[1], WORDS_OF_IT,
         "\ud800", "", "a,b", "\0"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(
        LETTERS, st.sampled_from(["result", "error", "sms", "install", "status"])),
        inner, max_size=3)), max_leaves=6)
RAW = st.one_of(st.binary(max_size=50), st.sampled_from([
    b"", b"{", b"[]", b"null", b"NaN", b"1" * 5000, b"[" * 100000, b'{"result":' * 50000,
    b"<html><title>502 Bad Gateway</title></html>", b"\xff\xfe{", b'{"result": "' + b"x" * 3000000,
    b" " * 10 ** 7, b'{"error": "' + WORDS_OF_IT.encode() + b'"}']))
CODES = st.sampled_from([200] * 6 + [201, 204, 400, 401, 403, 404, 429, 500, 502, 504, 599])
FORGED_HEADERS = st.sampled_from([{}] * 6 + [
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}, {"Content-Encoding": "x"},
    {"Transfer-Encoding": "chunked", "Connection": "close"}, {"Set-Cookie": "a=b"},
    {"Content-Type": "image/png"}])
ANSWERS = st.one_of(
    st.tuples(st.just("change"), st.lists(st.integers(0, 9), max_size=5), VALUES, CODES),
    st.tuples(st.just("change"), st.lists(st.integers(0, 9), max_size=5), VALUES, st.just(200)),
    st.tuples(st.just("drop"), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.none(),
              st.just(200)),
    st.tuples(st.just("json"), st.just([]), VALUES, CODES),
    st.tuples(st.just("raw"), FORGED_HEADERS, RAW, CODES),
    st.tuples(st.just("away"), st.sampled_from(AWAY), RAW,
              st.sampled_from([301, 302, 302, 302, 303, 307, 308])),
    st.tuples(st.just("cut"), st.none(), st.none(), st.just(0)))


def change(value, way, new, drop=False):
    """Replace, or take out, one part of a true answer: `way` says which child at each level."""
    if not way or not isinstance(value, (dict, list)) or not value:
        return new
    names = list(value) if isinstance(value, dict) else range(len(value))
    name = names[way[0] % len(names)]
    if drop and len(way) == 1:
        changed = value.copy()
        del changed[name]
        return changed
    inner = change(value[name], way[1:], new, drop)
    return {**value, name: inner} if isinstance(value, dict) else [
        inner if number == name else item for number, item in enumerate(value)]


class Liar:
    """Answers the truth so many times, then what was generated, for as long as it is asked."""

    def __init__(self, party, truths, answer):
        self.party, self.truths, self.generated = party, truths, answer

    def __call__(self, method, path, fields):
        self.truths -= 1
        if self.truths >= 0:
            return None
        kind, how, what, status = self.generated
        if kind == "cut":
            raise ConnectionResetError
        if kind == "raw":
            return status, what, how
        if kind == "away":
            return status, what, {"Location": how}
        true = self.party.answer(method, path, fields, SimpleNamespace(form=fields, path=path))[1]
        lie = what if kind == "json" else change(true, how, what, kind == "drop")
        return status, json.dumps(lie).encode(), {"Content-Type": "application/json"}


def ask(home, path, fields):
    """Ask the app for something that makes it ask others; 503 says that they did not answer."""
    body = encode(fields, "form")[0]
    answer = exchange(home, [post(path, body)])
    assert home.judge(f"POST {path} {body.decode()}", answer, 503)[0] in (200, 400, 403, 503)
    return answer


def act(home, action, number):
    """One thing that brings the app to ask; a message waits in the queue each time."""
    token, sent = {"AUTH_ID": ACCESS, "REFRESH_ID": REFRESH, "APPLICATION_TOKEN": TOKEN}, {
        "code": CODE, "message_id": f"{action}-{number}", "message_to": "+7" + NUMBER,
        "message_body": TEXT}
    assert ask(home, f"/handler?key={KEY}", sent)[0] == 200
    if action == "pass":
        home.one_pass()
    elif action == "event":
        ask(home, "/install", {"event": "ONAPPUPDATE", "auth[access_token]": ACCESS,
                               "auth[refresh_token]": REFRESH, "auth[application_token]": TOKEN})
    else:
        ask(home, "/" + action, {**token, "api_key": GOOD_KEY})


ACTIONS = {"operator": ["pass", "pass", "pass", "save"],
           "portal": ["pass", "save", "event", "index"],
           "oauth": ["pass", "pass", "save", "event", "index"]}


@pytest.mark.parametrize("name", ACTIONS)
def test_no_answer_breaks_a_rule(home, name):
    party, asked = {"operator": home.world.smsru, "portal": home.world.portal,
                    "oauth": home.world.oauth}[name], []
    home.heal()
    home.operator_lies = name == "operator"

    @settings(RULES, max_examples=300)
    @given(st.sampled_from(ACTIONS[name]), st.integers(0, 3), ANSWERS)
    def lie(action, truths, answer):
        asked.append(action)
        home.renew(expired=name == "oauth" and action == "pass")
        party.trouble = Liar(party, 0 if name == "oauth" else truths, answer)
        with home.rules():
            act(home, action, len(asked))

    lie()
    assert len(asked) >= 300
    home.drain()


def test_a_silent_connection_ends_after_30_seconds(silent):
    """It was opened when the first of these tests began, so that nobody waits for it alone."""
    line, began = silent
    line.settimeout(max(1, began + 40 - time.monotonic()))
    assert line.recv(1) == b""

