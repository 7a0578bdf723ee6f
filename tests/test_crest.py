"""crest.php: tokens, renamed and busy portals, batches; proven by passes over real messages."""
import json
import os
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from portal import ADMINISTRATOR, GOOD_KEY, Browser, Party, World, install, until
from test_install import reset

PRESS_SAVE = "an administrator must open the application and press Save"
BATCH, TOKEN = "/rest/batch", "/oauth/token"


def settings(world):
    return json.loads((world.app.data / "settings.json").read_text("utf-8"))


def asked(party, path):
    """The fields of the requests to one path, in their order."""
    return [fields for one, fields in party.requests if one.startswith(path)]


def send(world, count=1, message_id=None):
    """Bring messages to the operator, ready to be reported as delivered; returns their ids."""
    world.smsru.delay = 0
    if message_id is None:
        sent = world.portal.send_many([(f"+7999{n:07d}", "text") for n in range(count)])
    else:
        sent = [world.portal.send_message("+79990000000", "text", message_id=message_id)]
    assert {status for _, status in sent} == {200}
    paths = [world.app.data / "queue" / f"{one}.json" for one, _ in sent]
    until(lambda: all(json.loads(path.read_text("utf-8"))["operator_id"] for path in paths))
    return [one for one, _ in sent]


@pytest.fixture(scope="module")
def shared():
    with World() as world:
        world.start_app(RETRY_AFTER=1, STATUSES_EVERY=0)
        yield world


@pytest.fixture
def ready(shared):
    """The app freshly installed, and the address that a pass is asked for at."""
    assert install(reset(shared)).status_code == 200
    shared.statuses = shared.portal.senders["fastsms"]["HANDLER"].replace("/handler", "/statuses")
    shared.portal.requests.clear()
    return shared


def make_due(world):
    """Let the pause of every waiting message be over: a file's mtime is when it is due."""
    for path in world.app.queue():
        os.utime(path, (time.time() - 5, time.time() - 5))


def one_pass(world):
    make_due(world)
    answer = requests.get(world.statuses, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def delivered(world, ids):
    return [world.portal.messages[one]["history"] for one in ids] == [["sent", "delivered"]] * len(
        ids)


class Held:
    """Holds one kind of request at a party until it is let go."""

    def __init__(self, party, path):
        self.path, self.arrived, self.free = path, threading.Event(), threading.Event()
        party.trouble = self

    def __call__(self, method, path, fields):
        if path.startswith(self.path):
            self.arrived.set()
            self.free.wait(20)


class Later:
    """A call in a thread of its own; `result()` waits for what it returns or raises."""

    def __init__(self, call, *args):
        self.pool = ThreadPoolExecutor(1)
        self.future = self.pool.submit(call, *args)
        self.pool.shutdown(wait=False)

    def result(self):
        return self.future.result(30)


# Tokens ----------------------------------------------------------------------------------------

def test_an_expired_token_is_refreshed_once_and_saved_before_it_is_used(ready):
    used = []

    def look(method, path, fields):
        if path.startswith(BATCH):
            used.append((fields["auth"], settings(ready)["access_token"]))

    ids, old = send(ready), settings(ready)
    ready.portal.expire_tokens()
    ready.portal.trouble = look
    totals = one_pass(ready)
    new = settings(ready)
    assert (totals["delivered"], totals["errors"], totals["waiting"]) == (1, {}, 0)
    assert used == [(old["access_token"],) * 2, (new["access_token"],) * 2]
    assert old["access_token"] != new["access_token"]
    assert new["refresh_token"] in ready.oauth.refresh
    secret = next(one for one in ready.wire.exchanges if one["path"].startswith(TOKEN))
    assert "client_secret" in secret["fields"] and "?" not in secret["path"]
    ids += send(ready)
    assert one_pass(ready)["delivered"] == 1
    assert len(asked(ready.oauth, TOKEN)) == 1
    assert delivered(ready, ids)


@pytest.mark.parametrize(("status", "error"), [
    (401, "invalid_token"), (401, "NO_AUTH_FOUND"), (403, "insufficient_scope"),
    (403, "ACCESS_DENIED"), (500, "INTERNAL_SERVER_ERROR"), (502, None)])
def test_no_other_error_refreshes_the_token(ready, status, error):
    ids = send(ready)
    body = {"error": error, "error_description": "text"} if error else "<html>Bad Gateway</html>"
    ready.portal.trouble = lambda method, path, fields: (status, body, {})
    totals = one_pass(ready)
    assert totals["errors"]["portal"]
    assert totals["waiting"] == 1
    assert asked(ready.oauth, TOKEN) == []
    assert len(asked(ready.portal, BATCH)) == 1
    ready.portal.trouble = None
    assert one_pass(ready)["delivered"] == 1
    assert delivered(ready, ids)


def test_a_token_that_stays_expired_is_refreshed_only_once(ready):
    send(ready)
    ready.portal.trouble = lambda method, path, fields: (401, {"error": "expired_token"}, {})
    assert one_pass(ready)["errors"]["portal"]
    assert len(asked(ready.oauth, TOKEN)) == 1
    assert len(asked(ready.portal, BATCH)) == 2


def dismissed(world):
    world.portal.users[ADMINISTRATOR]["active"] = False


def refresh_refused(world):
    world.portal.expire_tokens()
    world.oauth.refresh.clear()


@pytest.mark.parametrize("trouble", [dismissed, refresh_refused])
def test_without_an_administrator_the_pass_asks_for_one(ready, trouble):
    ids = send(ready, 2)
    trouble(ready)
    totals = one_pass(ready)
    assert PRESS_SAVE in totals["errors"]["portal"]
    assert totals["waiting"] == 2
    assert len(asked(ready.oauth, TOKEN)) <= 1
    make_due(ready)
    code, output = ready.app.run("statuses")
    assert (code, PRESS_SAVE in output) == (1, True)
    ready.portal.users[3] = {"NAME": "Вера", "ADMIN": True, "active": True}
    assert install(ready, user=3).status_code == 200
    assert one_pass(ready)["delivered"] == 2
    assert delivered(ready, ids)


@pytest.mark.parametrize("answer", [
    None, (502, "<html>Bad Gateway</html>", {}), (200, {"access_token": None}, {})])
def test_an_oauth_server_in_trouble_takes_no_token_away(ready, answer):
    ids, before = send(ready), settings(ready)
    ready.portal.expire_tokens()
    if answer:
        ready.oauth.trouble = lambda method, path, fields: answer
    else:
        ready.oauth.stop()
    totals = one_pass(ready)
    assert totals["errors"]["portal"]
    assert PRESS_SAVE not in totals["errors"]["portal"]
    after = settings(ready)
    assert {name: after[name] for name in before} == before
    ready.oauth.trouble = None
    if not answer:
        ready.oauth.start()
    assert one_pass(ready)["delivered"] == 1
    assert delivered(ready, ids)


# Races -----------------------------------------------------------------------------------------

def test_whoever_loses_the_refresh_race_uses_the_winners_token(ready):
    ids = send(ready, 2)
    paths = [ready.app.data / "queue" / f"{one}.json" for one in ids]
    ready.portal.expire_tokens()
    held = Held(ready.oauth, TOKEN)
    make_due(ready)
    os.utime(paths[1], (time.time() + 60, time.time() + 60))
    first = Later(requests.get, ready.statuses)
    assert held.arrived.wait(10)
    os.utime(paths[0], (time.time() + 60, time.time() + 60))
    os.utime(paths[1], (time.time() - 5, time.time() - 5))
    (ready.app.data / "statuses.lock").unlink()  # lets a second process begin its pass as well
    second = Later(ready.app.run, "statuses")
    until(lambda: len(asked(ready.portal, BATCH)) == 2, message="both met the expired token")
    held.free.set()
    totals, (code, output) = first.result().json(), second.result()
    assert len(asked(ready.oauth, TOKEN)) == 1
    assert (totals["delivered"], totals["errors"]) == (1, {})
    assert (code, json.loads(output)["delivered"], json.loads(output)["errors"]) == (0, 1, {})
    assert delivered(ready, ids)


def test_a_key_saved_while_a_pass_refreshes_is_kept(ready):
    ids = send(ready)
    ready.smsru.keys.add("the new key")
    browser = Browser(ready)
    browser.open("index")
    browser.portal.expire_tokens()
    browser.open("index")  # after the old tokens ended
    held = Held(ready.oauth, TOKEN)
    running = Later(one_pass, ready)
    assert held.arrived.wait(10)
    saving = Later(lambda: browser.save(api_key="the new key"))
    until(lambda: asked(ready.smsru, "/auth/check")[-1]["api_id"] == "the new key")
    held.free.set()
    assert saving.result().status_code == 200
    assert running.result()["errors"] == {}
    after = settings(ready)
    assert "the new key" in json.dumps(after)
    assert GOOD_KEY not in json.dumps(after)
    assert after["access_token"] in ready.oauth.tokens
    assert after["refresh_token"] in ready.oauth.refresh
    assert delivered(ready, ids)


@pytest.mark.parametrize(("party", "path"), [
    ("smsru", "/sms/status"), ("portal", BATCH), ("oauth", TOKEN)])
@pytest.mark.parametrize("clean", [0, 1])
def test_an_uninstall_while_a_pass_runs_is_not_undone(ready, party, path, clean):
    send(ready, 3)
    if party == "oauth":
        ready.portal.expire_tokens()
    held = Held(getattr(ready, party), path)
    running = Later(one_pass, ready)
    assert held.arrived.wait(10)
    leaving = Later(lambda: ready.portal.fire("ONAPPUNINSTALL", CLEAN=clean))
    if party != "oauth":  # there it may wait for the lock that the refresh holds
        assert leaving.result() == 200
    held.free.set()
    assert leaving.result() == 200
    running.result()
    text = (ready.app.data / "settings.json").read_text("utf-8")
    assert not [name for name in ("token", "key", "member_id", "last_pass") if name in text]
    assert requests.get(ready.statuses, timeout=10).json()["error"] == "NOT_INSTALLED"
    assert not clean or ready.app.queue() == []


# A renamed portal ------------------------------------------------------------------------------

def test_a_renamed_portal_is_followed_with_the_post_intact_and_remembered(ready):
    ids = send(ready)
    ready.portal.rename()
    assert one_pass(ready)["errors"] == {}
    old = ready.portal.moved[-1]
    assert asked(old, BATCH) == asked(ready.portal, BATCH)[-1:]
    assert settings(ready)["client_endpoint"] == ready.portal.endpoint
    ids += send(ready)
    assert one_pass(ready)["delivered"] == 1
    assert len(old.requests) == 1
    assert delivered(ready, ids)


class Hop(Party):
    """An address that a portal has left: sends everybody on."""

    name, location = "portal", None

    def answer(self, method, path, fields, request):
        headers = {"Location": self.location + path} if self.location is not None else {}
        return 302, "<html>302 Found</html>", headers


@pytest.fixture
def hops(shared):
    """Three addresses, each pointing to the next, the last to the portal."""
    parties = [Hop().start() for _ in range(3)]
    for party, following in zip(parties, [*parties[1:], shared.portal]):
        party.location = following.url
    yield parties
    for party in parties:
        party.stop()


@pytest.mark.parametrize(("first", "asks", "reached"), [(2, [0, 0, 1], 1), (1, [0, 1, 1], 1),
                                                        (0, [1, 1, 1], 0)])
def test_at_most_two_hops(ready, hops, first, asks, reached):
    ids = send(ready)
    change(ready, client_endpoint=hops[first].url + "/rest/")
    totals = one_pass(ready)
    assert [len(hop.requests) for hop in hops] == asks
    assert len(asked(ready.portal, BATCH)) == reached
    assert (totals["errors"] == {}) is delivered(ready, ids) is bool(reached)
    remembered = ready.portal.endpoint if reached else hops[first].url + "/rest/"
    assert settings(ready)["client_endpoint"] == remembered


def change(world, **news):
    path = world.app.data / "settings.json"
    path.write_text(json.dumps({**settings(world), **news}), "utf-8")


@pytest.mark.parametrize("answer", [(500, {"error": "INTERNAL_SERVER_ERROR"}, {}),
                                    (404, "<html>nobody here</html>", {})])
def test_a_new_address_is_remembered_only_after_a_good_answer(ready, hops, answer):
    send(ready)
    change(ready, client_endpoint=hops[2].url + "/rest/")
    ready.portal.trouble = lambda method, path, fields: answer
    assert one_pass(ready)["errors"]["portal"]
    assert settings(ready)["client_endpoint"] == hops[2].url + "/rest/"


class Tunnel(ThreadingHTTPServer):
    """A proxy that plays every host of the world, with one certificate for all.

    `location` is where it sends the first request on to; `requests` is what came.
    """

    daemon_threads, location = True, ""
    hosts = ("*.bitrix24.ru", "*.company.ru", "company.ru", "*.stranger.ru", "stranger.ru")

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), TunnelRequest)
        self.requests, self.url = [], f"http://127.0.0.1:{self.server_port}"
        self.certificate = str(folder / "tunnel.pem")  # for a day; no key lies in the repository
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
             "/CN=tunnel", "-addext", "subjectAltName=" + ",".join(
                 f"DNS:{host}" for host in self.hosts),
             "-keyout", self.certificate + ".key", "-out", self.certificate],
            check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, self.certificate + ".key")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is daily life here."""


class TunnelRequest(BaseHTTPRequestHandler):
    """One connection: CONNECT, then TLS, then requests as usual."""

    protocol_version, host = "HTTP/1.1", ""

    def log_message(self, *args):
        """Silence: `requests` is the log."""

    def do_CONNECT(self):
        self.host = "https://" + self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.host + self.path, body))
        first = len(self.server.requests) == 1
        self.send_response(302 if first else 500)
        self.send_header("Location" if first else "X-End", self.server.location + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def tunnel(tmp_path):
    server = Tunnel(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


ACME = "https://acme.bitrix24.ru"
MOVES = [  # where a portal was, where it says it is now, whether a token may go there
    (ACME, "https://renamed.bitrix24.ru", True), (ACME, "http://renamed.bitrix24.ru", False),
    (ACME, "https://acme.stranger.ru", False), (ACME, "https://bitrix24.ru.stranger.ru", False),
    (ACME, "https://acme.bitrix24.ru:443@a.stranger.ru", False), (ACME, "{loopback}", False),
    (ACME, "https://stranger.ru", False), (ACME, "//a.stranger.ru", False), (ACME, "", False),
    ("https://portal.company.ru", "https://crm.company.ru", True),
    ("https://company.ru", "https://stranger.ru", False),
    ("https://company.ru", "http://company.ru", False)]


def test_a_renamed_portal_stays_in_its_zone_and_in_https(installed, hops, tunnel):
    world = installed
    world.statuses = world.portal.senders["fastsms"]["HANDLER"].replace("/handler", "/statuses")
    send(world)
    world.app.stop()
    world.app.env.update(HTTPS_PROXY=tunnel.url, HTTP_PROXY=tunnel.url, http_proxy=tunnel.url,
                         NO_PROXY="127.0.0.1", REQUESTS_CA_BUNDLE=tunnel.certificate)
    world.app.start()
    followed = []
    for host, location, _ in MOVES:
        del tunnel.requests[:]
        tunnel.location = location.format(loopback=hops[0].url)
        change(world, client_endpoint=host + "/rest/")
        assert one_pass(world)["errors"]["portal"]
        assert tunnel.requests[0][0] == host + "/rest/batch.json"
        followed.append((host, location, len(tunnel.requests) > 1))
        assert len({body for _, body in tunnel.requests}) == 1
    assert list(hops[0].requests) == []
    assert followed == MOVES
    change(world, client_endpoint=hops[2].url + "/rest/")
    del tunnel.requests[:]
    for location in ("http://plain.stranger.ru", "https://a.stranger.ru", None,
                     "http://127.0.0.1.stranger.ru", "http://127.0.0.1@a.stranger.ru"):
        hops[2].location = location
        assert one_pass(world)["errors"]["portal"]
    assert tunnel.requests == []


# Limits and batches ----------------------------------------------------------------------------

def refuse_first(count, status, error):
    """Trouble for the first `count` batches."""
    left = [count]

    def trouble(method, path, fields):
        if path.startswith(BATCH) and left[0]:
            left[0] -= 1
            return status, {"error": error, "error_description": "wait"}, {}

    return trouble


@pytest.mark.parametrize(("times", "error", "pause"), [
    (2, "QUERY_LIMIT_EXCEEDED", 0.9), (1, "OVERLOAD_LIMIT", 0.4)])
def test_a_busy_portal_is_waited_for(ready, times, error, pause):
    ids = send(ready)
    ready.portal.trouble = refuse_first(times, 503, error)
    began = time.monotonic()
    totals = one_pass(ready)
    waited = time.monotonic() - began
    assert (totals["delivered"], totals["errors"]) == (1, {})
    assert len(asked(ready.portal, BATCH)) == times + 1
    assert waited > pause  # half a second at first, then longer
    assert delivered(ready, ids)


def test_fifty_commands_a_request_and_a_blocked_method_ends_the_pass(ready):
    ids = send(ready, 120)
    ready.portal.trouble = refuse_first(1, 429, "OPERATION_TIME_LIMIT")
    totals = one_pass(ready)
    assert totals["errors"]["portal"] == "OPERATION_TIME_LIMIT"
    assert totals["waiting"] == 120
    assert len(asked(ready.portal, BATCH)) == 1
    assert one_pass(ready)["delivered"] == 120
    sizes = [len([name for name in fields if name.startswith("cmd[")])
             for fields in asked(ready.portal, BATCH)]
    assert sorted(sizes[1:]) == [20, 50, 50]
    assert delivered(ready, ids)


def test_what_a_first_batch_achieved_counts_though_the_second_fails(ready):
    ids = send(ready, 60)
    batches = []

    def second_fails(method, path, fields):
        batches.append(path)
        return (500, {"error": "INTERNAL_SERVER_ERROR"}, {}) if len(batches) == 2 else None

    ready.portal.trouble = second_fails
    totals = one_pass(ready)
    assert (totals["delivered"], totals["waiting"]) == (50, 10)
    assert totals["errors"]["portal"] == "INTERNAL_SERVER_ERROR"
    assert one_pass(ready)["delivered"] == 10
    assert delivered(ready, ids)


@pytest.mark.parametrize("unknown", [[], ["1"], ["0", "1", "2"]])
def test_lists_that_php_makes_of_maps_are_understood(ready, unknown):
    ids = [one for number in range(3) for one in send(ready, message_id=str(number))]
    for one in unknown:  # the portal does not know it any longer: an error of this command alone
        del ready.portal.messages[one]
    totals = one_pass(ready)
    assert (totals["delivered"], totals["waiting"]) == (3 - len(unknown), 0)
    assert delivered(ready, [one for one in ids if one not in unknown])
