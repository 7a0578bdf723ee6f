"""post(): an operator's line that breaks in ways which only TLS and redirects know."""
import os
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme
from portal import until
from test_queue import calls, logged, read, send, tried

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
