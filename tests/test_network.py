"""post(): lines that break, answers that are none, and whom a refused token calls."""
import gzip
import json
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import trustme
from portal import Browser, free_port, until
from test_queue import calls, logged, make_due, one_pass, read, send, settled, tried

MIB = 1024 * 1024


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
def operator(answer, context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Operator)
    server.received, server.answer = [], answer
    server.handle_error = lambda *_: None  # the app ends the line, as it should
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def secure(tmp_path):
    """A certificate for localhost, and the file that lets the app believe it."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return context, {"REQUESTS_CA_BUNDLE": str(tmp_path / "authority.pem")}


@pytest.fixture
def on_its_way(installed):
    """A message whose final status the next pass learns, and then must report."""
    settled(installed.app, send(installed, "told later"))
    installed.smsru.delay = 0
    make_due(installed.app)


def moved(world, server, scheme="https", **env):
    """The same app, its operator at another address from now on."""
    world.app.stop()
    world.app.env.update(env, SMSRU_URL=f"{scheme}://localhost:{server.server_port}")
    world.app.start()


def not_tls(connection):
    os.write(connection.connection.fileno(), b"What is this? No record of TLS.")


def test_a_line_that_loses_its_tls_after_the_request_leaves_a_doubt(installed, secure):
    """The operator has the message: "unreachable" would send it again, and again."""
    context, trust = secure
    with operator(not_tls, context) as server:
        moved(installed, server, **trust)
        message_id = send(installed, "who knows")
        tried(installed.app, message_id)
        assert len(server.received) == 1
    assert logged(installed.app, "send", message_id)[0]["outcome"] == "in doubt"
    assert read(installed.app, message_id)["doubts"] == 1


def test_an_operator_whose_certificate_is_wrong_gets_nothing_and_the_message_waits(
        installed, secure):
    with operator(not_tls, secure[0]) as server:
        moved(installed, server)
        message_id = send(installed, "a secret")
        tried(installed.app, message_id)
        assert server.received == []
    assert logged(installed.app, "send", message_id)[0]["outcome"] == "down"
    assert read(installed.app, message_id)["doubts"] == 0


def test_a_redirect_is_not_followed_and_its_body_is_not_read_to_the_end(installed):
    sent, ended = [], threading.Event()

    def redirect(connection):
        connection.send_response(302)
        connection.send_header("Location", installed.smsru.url + "/sms/send")
        connection.end_headers()
        try:
            for _ in range(64):
                sent.append(connection.wfile.write(b" " * MIB))
        finally:
            ended.set()
    with operator(redirect) as server:
        moved(installed, server, "http")
        message_id = send(installed, "not there")
        tried(installed.app, message_id)
        until(ended.is_set, message="the app keeps the line")
    assert sum(sent) < 32 * MIB
    assert not calls(installed.smsru, "/sms/send")


@contextmanager
def closed_at_once():
    """Takes each connection, and ends it before TLS is agreed upon."""
    line, met = socket.create_server(("127.0.0.1", 0)), []

    def take():
        with suppress(OSError):
            while True:
                with line.accept()[0] as one:
                    met.append(one.recv(3))
    threading.Thread(target=take, daemon=True).start()
    with line:
        yield SimpleNamespace(server_port=line.getsockname()[1]), met


def test_a_line_that_does_not_get_as_far_as_tls_leaves_no_doubt(installed):
    """Nothing went out: two such tries must not make a message "failed"."""
    with closed_at_once() as (server, met):
        moved(installed, server)
        message_id = send(installed, "not out yet")
        tried(installed.app, message_id)
        for _ in range(2):
            make_due(installed.app)
            assert one_pass(installed)["errors"] == {"operator": "down"}
    assert met
    assert read(installed.app, message_id)["doubts"] == 0


def test_a_line_that_is_refused_is_tried_twice_more_before_the_message_has_to_wait(installed):
    """Pauses of 0 and 0.6 seconds, by urllib3's Retry: an operator that restarts holds nothing up."""
    moved(installed, SimpleNamespace(server_port=free_port()), "http")
    began = time.monotonic()
    message_id = send(installed, "is anybody there")
    tried(installed.app, message_id)
    assert time.monotonic() - began > 0.6
    assert logged(installed.app, "send", message_id)[0]["outcome"] == "down"


@pytest.mark.parametrize("error", [True, None, 7, {"code": "x"}])
@pytest.mark.usefixtures("on_its_way")
def test_an_error_that_is_no_text_is_an_error_all_the_same(installed, error):
    installed.portal.trouble = lambda method, path, fields: (400, {"error": error}, {})
    totals = one_pass(installed)
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
        connection.wfile.write(gzip.compress(json.dumps({"status": "OK", "sms": {"7": {
            "status": "OK", "status_code": 100, "sms_id": "202648-1"}}}).encode()))
    with operator(compressed) as server:
        moved(installed, server, "http")
        message_id = send(installed, "small")
        settled(installed.app, message_id)
    assert read(installed.app, message_id)["operator_id"] == "202648-1"


@pytest.mark.parametrize(("answer", "error"), [
    ((400, {"error": "invalid_grant"}, {}), "invalid_grant: an administrator must"),
    ((401, {"error": "invalid_client"}, {}), "invalid_client: an administrator must"),
    ((401, {"error": "wrong_client"}, {}), "invalid_grant: an administrator must"),
    ((402, {"error": "PAYMENT_REQUIRED"}, {}), "PAYMENT_REQUIRED"),
    ((429, "", {}), "HTTP_429"), ((200, {}, {}), "oauth_server")])
@pytest.mark.usefixtures("on_its_way")
def test_an_administrator_is_called_only_where_he_can_help(installed, answer, error):
    installed.portal.expire_tokens()
    installed.oauth.trouble = lambda method, path, fields: answer
    told = one_pass(installed)["errors"]["portal"]
    assert told.startswith(error)
    assert ("administrator" in error) == ("administrator" in told)


@pytest.mark.usefixtures("on_its_way")
def test_a_token_that_no_request_can_carry_is_an_error_with_a_name(installed):
    installed.portal.expire_tokens()
    installed.oauth.trouble = lambda method, path, fields: (
        200, r'{"access_token": "\ud800", "refresh_token": "\ud800"}', {})
    assert one_pass(installed)["errors"]["portal"] == "no_answer"


@pytest.mark.parametrize("code", ["expired_token", "invalid_token", "NO_AUTH_FOUND"])
@pytest.mark.usefixtures("on_its_way")
def test_where_the_portal_knows_no_token_of_ours_an_administrator_is_called(installed, code):
    installed.portal.trouble = lambda method, path, fields: (401, {"error": code}, {})
    assert one_pass(installed)["errors"]["portal"].startswith(f"{code}: an administrator must")
