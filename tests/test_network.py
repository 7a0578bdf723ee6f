"""post(): lines that break, statuses that say little, and whom a refused token calls."""
import gzip
import json
import os
import socket
import ssl
import struct
import threading
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import trustme
from pretend import Browser, World, free_port, install, until
from steps import (
    calls,
    folder_of,
    forget,
    installed_app,
    make_due,
    one_pass,
    outcomes,
    read,
    rests,
    send,
    settled,
    tried,
)

RETRY_AFTER = 60  # seconds


class Operator(BaseHTTPRequestHandler):
    """Takes a message, then answers as the server's `answer` does."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(body)
        self.server.answer(self)
        self.close_connection = True

    def log_message(self, *words):
        """pytest's output is for failures."""


@contextmanager
def operator(answer, context=None, port=0):
    server = ThreadingHTTPServer(("127.0.0.1", port), Operator)
    server.received, server.answer = [], answer
    server.handle_error = lambda *_: None  # the app ends the line, as it should
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def certificate(authority, host="localhost"):
    """How a server of this name speaks TLS, with a certificate by this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


@pytest.fixture
def shop(blank):
    """One world for the tables, installed anew for each row."""
    assert install(blank).status_code == 200
    return blank


@pytest.fixture(scope="module")
def secure_world(tmp_path_factory):
    """An installed world whose operator is at an https address, where nobody listens yet.

    The app believes world.authority and no other; world.place is the operator's port.
    """
    authority, place = trustme.CA(), free_port()
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    with World() as world:
        world.authority, world.place = authority, place
        installed_app(world, RETRY_AFTER=RETRY_AFTER, REQUESTS_CA_BUNDLE=path)
        moved(world, SimpleNamespace(server_port=place))
        yield world


@pytest.fixture
def secure(secure_world):
    """The same, nothing waiting."""
    forget(secure_world.app)
    return secure_world


@pytest.fixture
def on_its_way(shop):
    """A message whose final status the next pass learns, and then must report."""
    settled(shop.app, send(shop, "told later"))
    shop.smsru.delay = 0
    make_due(shop.app)


def moved(world, server, scheme="https", host="localhost"):
    """The same app, its operator at another address from now on."""
    world.app.stop()
    world.app.env.update(SMSRU_URL=f"{scheme}://{host}:{server.server_port}")
    world.app.start()


# What is said once, and what a doubt costs -------------------------------------------------------

def tried_once(world, message_id, times=1):
    """Wait until this try has ended sending; that sending rests is written down last."""
    tried(world.app, message_id, times)
    until(lambda: rests(world.app) > 0, message="sending does not rest")


def waits(world, message_id, outcome):
    """Nothing was taken: it is tried as often as it takes, and not once is it a doubt."""
    tried_once(world, message_id)
    for times in (2, 3, 4):
        make_due(world.app)
        one_pass(world)  # sends, or leaves it to a sender that has not let go yet
        tried_once(world, message_id, times)
    assert outcomes(world.app, message_id) == [outcome] * 4
    assert folder_of(world.app, message_id) == "new"
    message = read(world.app, message_id)
    assert (message["in_doubt"], bool(message["text"])) == (False, True)
    assert world.portal.messages[message_id]["history"] == ["sent"]


def doubts(world, message_id):
    """It may be sent: tried once more, never more often, then the portal is told "failed"."""
    tried_once(world, message_id)
    assert read(world.app, message_id)["in_doubt"] is True
    history = world.portal.messages[message_id]["history"]

    def told():
        make_due(world.app)
        one_pass(world)
        return len(history) > 1
    until(told, message="nobody told the portal")
    assert history == ["sent", "failed"]
    assert outcomes(world.app, message_id) == ["in doubt"] * 2
    assert folder_of(world.app, message_id) is None


HTML = "<html><title>Bad gateway</title></html>"
SAYS_NOTHING = [500, 501, 502, 504, 505, 508, 520, 599, 302, 307, 400, 403, 404, 200, 204]


@pytest.mark.parametrize("status", SAYS_NOTHING)
def test_a_status_that_does_not_say_what_became_of_the_message_is_a_doubt(shop, status):
    """A gateway may say 502 after the operator has taken the message."""
    elsewhere = {"Location": shop.smsru.url + "/elsewhere"} if 300 <= status < 400 else {}
    shop.smsru.trouble = lambda method, path, fields: (
        (status, "" if status == 204 else HTML, elsewhere) if path == "/sms/send" else None)
    doubts(shop, send(shop, "who knows"))
    assert len(calls(shop.smsru, "/sms/send")) == 2
    assert not calls(shop.smsru, "/elsewhere")


@pytest.mark.parametrize(("status", "outcome"), [(503, "down"), (429, "busy")])
@pytest.mark.parametrize("body", [HTML, {"status": "ERROR", "status_code": 202}, ""])
def test_a_status_that_says_that_nothing_was_taken_lets_the_message_wait(
        shop, status, outcome, body):
    shop.smsru.trouble = lambda method, path, fields: (
        (status, body, {}) if path == "/sms/send" else None)
    message_id = send(shop, "not now")
    waits(shop, message_id, outcome)
    assert one_pass(shop)["errors"] == {"operator": outcome}
    assert 0 < rests(shop.app) <= RETRY_AFTER
    shop.smsru.trouble = None
    make_due(shop.app)
    one_pass(shop)
    settled(shop.app, message_id)


# Lines that break --------------------------------------------------------------------------------

def not_tls(connection):
    """In the answer, where the rest of the line must be TLS."""
    os.write(connection.connection.fileno(), b"What is this? No record of TLS.")


def no_answer(connection):
    connection.connection.close()


def half_an_answer(connection):
    connection.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"status": "OK", ')


def half_a_head(connection):
    connection.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")


def not_http(connection):
    connection.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def reset_line(connection):
    linger = struct.pack("ii", 1, 0)
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.connection.close()


def not_gzip(connection):
    connection.send_response(200)
    connection.send_header("Content-Encoding", "gzip")
    connection.end_headers()
    connection.wfile.write(b"not compressed at all")


@pytest.mark.parametrize("answer", [
    not_tls, no_answer, half_an_answer, half_a_head, not_http, reset_line, not_gzip])
def test_a_line_that_breaks_after_the_request_is_a_doubt(secure, answer):
    """The operator has the message: "down" would send it again, and again."""
    with operator(answer, certificate(secure.authority), secure.place) as server:
        doubts(secure, send(secure, "who knows"))
        assert len(server.received) == 2


@contextmanager
def before_tls(port, last_words=b""):
    """Takes each connection, and ends it before TLS is agreed upon."""
    line, met = socket.create_server(("127.0.0.1", port)), []

    def take():
        with suppress(OSError):
            while True:
                with line.accept()[0] as one:
                    met.append(one.recv(3))
                    one.sendall(last_words)
    threading.Thread(target=take, daemon=True).start()
    try:
        yield met
    finally:
        line.shutdown(socket.SHUT_RDWR)  # or the thread goes on listening
        line.close()


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_line_that_does_not_get_as_far_as_tls_is_a_doubt_too(secure, last_words):
    """Which of TLS's troubles come before the request, no exception's type says."""
    with before_tls(secure.place, last_words) as met:
        doubts(secure, send(secure, "not out yet"))
    assert len(met) == 2


def stranger(world):
    return operator(not_tls, certificate(trustme.CA()), world.place)


def other_host(world):
    return operator(not_tls, certificate(world.authority, "example.org"), world.place)


def nobody(world):
    return nullcontext(SimpleNamespace(received=[]))


@pytest.mark.parametrize("at_the_place", [stranger, other_host, nobody])
def test_where_no_trusted_operator_answers_the_call_nothing_goes_out_and_the_message_waits(
        secure, at_the_place):
    with at_the_place(secure) as server:
        message_id = send(secure, "a secret")
        waits(secure, message_id, "down")
        assert server.received == []


def test_a_call_that_is_not_answered_at_all_sent_nothing(secure):
    """Five seconds of TIMEOUT: the place takes no more calls, as a firewall that drops them."""
    with socket.create_server(("127.0.0.1", secure.place), backlog=0), ExitStack() as crowd:
        for _ in range(3):  # more than the one that the place has room for
            one = crowd.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", secure.place))
        message_id = send(secure, "let me in")
        until(lambda: outcomes(secure.app, message_id), 20)
    assert outcomes(secure.app, message_id) == ["down"]
    tried_once(secure, message_id)
    assert read(secure.app, message_id)["in_doubt"] is False


def test_a_host_that_nobody_knows_gets_nothing_and_the_message_waits(installed):
    moved(installed, SimpleNamespace(server_port=443), host="no-such-operator.invalid")
    waits(installed, send(installed, "to whom"), "down")


# What is answered --------------------------------------------------------------------------------

@pytest.mark.parametrize("error", [True, None, 7, {"code": "x"}])
@pytest.mark.usefixtures("on_its_way")
def test_an_error_that_is_no_text_is_an_error_all_the_same(shop, error):
    shop.portal.trouble = lambda method, path, fields: (400, {"error": error}, {})
    totals = one_pass(shop)
    assert set(totals["errors"]) == {"portal"}
    assert totals["waiting"] == 1


def test_cookies_are_not_kept(installed):
    """One user's session must not meet another's token; PHP lets a session's requests wait."""
    seen, answer = [], installed.portal.answer

    def with_cookie(method, path, fields, request):
        seen.append(request.headers.get("Cookie"))
        status, body, more = answer(method, path, fields, request)
        return status, body, {**(more or {}), "Set-Cookie": "PHPSESSID=1; path=/"}
    installed.portal.answer = with_cookie
    settled(installed.app, send(installed, "one"))
    installed.smsru.delay = 0
    for _ in range(2):
        assert Browser(installed).open("index").status_code == 200
    assert set(seen) == {None}
    assert len(seen) > 1


def test_an_answer_may_be_compressed(installed):
    """Web servers do it when they are asked to, and requests asks."""
    def compressed(connection):
        assert "gzip" in connection.headers["Accept-Encoding"]
        connection.send_response(200)
        connection.send_header("Content-Encoding", "gzip")
        connection.end_headers()
        connection.wfile.write(gzip.compress(json.dumps({
            "status": "OK", "status_code": 100, "sms": {"79255070602": {
                "status": "OK", "status_code": 100, "sms_id": "202648-1"}}}).encode()))
    with operator(compressed) as server:
        moved(installed, server, "http")
        message_id = send(installed, "small")
        settled(installed.app, message_id)
    assert read(installed.app, message_id)["operator_id"] == "202648-1"


@pytest.mark.parametrize(("answer", "error"), [
    ((400, {"error": "invalid_grant"}, {}), "invalid_grant: an administrator must"),
    ((401, {"error": "invalid_client"}, {}), "invalid_client: an administrator must"),
    ((401, {"error": "wrong_client"}, {}), "wrong_client: an administrator must"),
    ((402, {"error": "PAYMENT_REQUIRED"}, {}), "PAYMENT_REQUIRED"),
    ((429, "", {}), "HTTP_429"), ((200, {}, {}), "oauth_server")])
@pytest.mark.usefixtures("on_its_way")
def test_an_administrator_is_called_only_where_he_can_help(shop, answer, error):
    shop.portal.expire_tokens()
    shop.oauth.trouble = lambda method, path, fields: answer
    told = one_pass(shop)["errors"]["portal"]
    assert told.startswith(error)
    assert ("administrator" in error) == ("administrator" in told)


@pytest.mark.usefixtures("on_its_way")
def test_a_token_that_is_no_text_is_an_error_with_a_name_and_save_heals_it(shop):
    shop.portal.expire_tokens()
    shop.oauth.trouble = lambda method, path, fields: (
        200, r'{"access_token": "\ud800", "refresh_token": "\ud800"}', {})
    for _ in range(2):  # as it came, and as it was saved
        make_due(shop.app)
        assert one_pass(shop)["errors"]["portal"].startswith("invalid_token: an administrator")
    shop.oauth.trouble = None
    assert install(shop).status_code == 200
    make_due(shop.app)
    assert one_pass(shop)["delivered"] == 1


@pytest.mark.parametrize("code", ["expired_token", "invalid_token", "NO_AUTH_FOUND"])
@pytest.mark.usefixtures("on_its_way")
def test_where_the_portal_knows_no_token_of_ours_an_administrator_is_called(shop, code):
    shop.portal.trouble = lambda method, path, fields: (401, {"error": code}, {})
    assert one_pass(shop)["errors"]["portal"].startswith(f"{code}: an administrator must")
