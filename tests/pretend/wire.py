"""What travels between the four parties, and the plain HTTP server that every pretend party is.

A reader of the lesson wants to see each request and answer, so all of them are written down here,
with tokens and keys masked, together with the tutorial's script that the exchange belongs to.
"""
import http.server
import json
import re
import socketserver
import sys
import threading
import time
from collections import deque
from urllib.parse import parse_qsl, urlsplit

import requests

SECRET_NAMES = {
    "access_token", "refresh_token", "application_token", "client_secret", "auth", "auth_id",
    "refresh_id", "app_sid", "api_id", "api_key", "key", "token", "secret", "password", "hash"}
IN_URL = re.compile(  # a secret inside an address, plain or percent-encoded inside a batch command
    rf"(?i)((?:[?&]|%3F|%26)(?:{'|'.join(sorted(SECRET_NAMES))})(?:=|%3D))"
    r"((?:(?!%26)[^&\s\"'<>])+)")
LONGEST_ANSWER = 2000  # characters of a text answer that are written down

SCRIPTS = [  # who is asked, what the path looks like, the tutorial's script it belongs to
    ("app", r"/(install|save)$", "install"),
    ("app", r"/handler$", "handler"),
    ("app", r"/statuses$|^statuses$", "statuses"),
    ("app", r"/checkserver$", "checkserver"),
    ("app", r"/(index)?$", "index"),
    ("oauth", r"", "crest"),
    ("operator", r"/sms/send$", "handler"),
    ("operator", r"/sms/status$", "statuses"),
    ("operator", r"", "install"),
    ("portal", r"messageservice\.message\.status\.update(\.json)?$", "statuses"),
    ("portal", r"/profile(\.json)?$", "crest"),  # whose token is it? asked by install and index
    ("portal", r"", "install"),
]


def script_of(to, path):
    """Name the tutorial's script (install.php, handler.php, ...) that an exchange belongs to.

    `path` is a request's path, or the first command of a batch.
    """
    bare = urlsplit(path).path
    return next((name for party, pattern, name in SCRIPTS
                 if party == to and re.search(pattern, bare)), "")


def until(condition, seconds=10, message="it never came true"):
    """Poll until `condition()` is truthy and return its value; no longer than needed."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (waited {seconds} s)")
        time.sleep(0.02)


def flat(value, name=""):
    """Turn nested JSON into PHP's bracket names, so that both encodings look alike to a party."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        text = str(int(value)) if isinstance(value, bool) else str(value)
        return {} if value is None else {name: text}
    fields = {}
    for key, item in pairs:
        fields.update(flat(item, f"{name}[{key}]" if name else str(key)))
    return fields


def brief(answer):
    """Leave out the portal's timings: they are in every answer and say nothing to a reader."""
    if isinstance(answer, dict):
        return {name: brief(value) for name, value in answer.items()
                if name not in ("time", "result_time")}
    return answer


class Wire:
    """What was said, safe to use from threads.

    An exchange is there from the moment it begins, `pending` until it is answered; `n` counts from
    1 in the order in which they began. `changes` holds each beginning and each answer in the order
    in which they happened; `began` and `ended` are an exchange's places in it.
    """

    def __init__(self):
        self.exchanges, self.changes = [], []
        self.secrets = set()  # values once seen under a secret name; masked wherever they return
        self.news = threading.Condition()
        self.local = threading.local()

    def begin(self, who, to, method, path, fields=(), script=None, base=""):
        """Write a request down, masked, before anybody answers. `base` is where it goes to."""
        with self.news:
            fields = {name: self.mask(value, name) for name, value in dict(fields).items()}
            command = next((text for name, text in fields.items() if name.startswith("cmd[")), path)
            exchange = {"n": len(self.exchanges) + 1, "time": time.time(), "who": who, "to": to,
                        "method": method, "path": self.mask(path), "base": base, "fields": fields,
                        "status": None, "answer": None, "pending": True, "seconds": None,
                        "script": script or script_of(to, command),
                        "began": len(self.changes) + 1, "ended": None}
            self.exchanges.append(exchange)
            self.changes.append(exchange)
            self.news.notify_all()
        return exchange

    def end(self, exchange, status, answer=""):
        """Put the answered exchange in the place of the waiting one; the list may be a new one."""
        with self.news:
            done = {**exchange, "status": status, "answer": self.summary(answer),
                    "pending": False, "seconds": round(time.time() - exchange["time"], 3),
                    "ended": len(self.changes) + 1}
            place = exchange["n"] - 1
            if self.exchanges[place:place + 1] and self.exchanges[place] is exchange:
                self.exchanges[place] = done
                self.changes.append(done)
                self.news.notify_all()
        return done

    def add(self, who, to, method, path, fields=(), status=200, answer="", script=None):
        """Write down what is answered already."""
        return self.end(self.begin(who, to, method, path, fields, script), status, answer)

    def since(self, n):
        """Return the exchanges after number n, as they are now."""
        with self.news:
            return self.exchanges[n:]

    def changed(self, change, wait=0):
        """Return the changes after that one; with `wait`, sit up to that many seconds for them."""
        with self.news:
            self.news.wait_for(lambda: len(self.changes) > change, timeout=wait)
            return self.changes[change:]

    def clear(self):
        """Forget everything that was said, but not what is secret."""
        with self.news:
            self.exchanges, self.changes = [], []
            self.news.notify_all()

    def mask(self, value, name=""):
        """Keep the last four characters of a secret, found by its name or met before."""
        last_name = re.split(r"[\[\]]+", name.rstrip("]"))[-1].lower()
        if isinstance(value, dict):
            return {key: self.mask(item, str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mask(item) for item in value]
        if not isinstance(value, str):
            return value
        if last_name in SECRET_NAMES:
            return self.hide(value)
        for secret in self.secrets:
            if secret in value:
                value = value.replace(secret, self.hide(secret))
        return IN_URL.sub(lambda found: found.group(1) + self.hide(found.group(2)), value)

    def hide(self, secret):
        if secret.startswith("…") or not secret:
            return secret
        if len(secret) >= 8:
            self.secrets = self.secrets | {secret}
        return "…" + (secret[-4:] if len(secret) > 8 else "")

    def summary(self, answer):
        """Make an answer printable: JSON stays data, a page becomes one line, the rest is cut."""
        if isinstance(answer, bytes):
            answer = answer.decode("utf-8", "replace")
        if isinstance(answer, str):
            try:
                answer = json.loads(answer) if answer[:1] in "{[" and answer else answer
            except ValueError:
                pass
        if isinstance(answer, str) and answer.lstrip()[:1] == "<":
            title = re.search(r"(?is)<title>(.*?)</title>", answer)
            name = title.group(1).strip() if title else "no title"
            answer = f"HTML page “{name}”, {len(answer)} characters"
        answer = self.mask(answer)
        return answer[:LONGEST_ANSWER] if isinstance(answer, str) else answer

    def post(self, who, to, url, fields, headers=None, method="POST", timeout=60):
        """Make a call of the emulator's own and write it down; no answer raises as in requests.

        The portal follows nothing and keeps no cookies between its calls; one session a thread.
        """
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            self.local.session.trust_env = False
        parts = urlsplit(url)
        path = parts.path + ("?" + parts.query if parts.query else "")
        base = f"{parts.scheme}://{parts.netloc}"
        exchange = self.begin(who, to, method, path, fields, base=base)
        try:
            self.local.session.cookies.clear()
            answer = self.local.session.request(method, url, data=fields, headers=headers,
                                                timeout=timeout, allow_redirects=False)
        except requests.RequestException as error:
            self.end(exchange, 0, type(error).__name__)
            raise
        answer.encoding = "utf-8"
        self.end(exchange, answer.status_code, answer.text)
        return answer


class Server(http.server.ThreadingHTTPServer):
    """The listening socket of a party; it knows its live connections, to be able to cut them."""

    request_queue_size = 512
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False

    def server_bind(self):
        # Not HTTPServer's own: that one asks DNS for the host's name, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        self.live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.live.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """A caller that hangs up is daily life; a mistake of the emulator must be seen."""
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handle_error(request, client_address)


class Request(http.server.BaseHTTPRequestHandler):
    """One connection: reads fields, asks the party for its answer, has the wire note both."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args):
        """Silence: the wire is the log."""

    def read(self):
        """Return the body's fields: a PHP form or JSON (REST takes both, "How to call REST")."""
        self.body = body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "json" in self.headers.get("Content-Type", ""):
            try:
                return flat(json.loads(body or b"{}"))
            except ValueError:
                return {}
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))

    def serve(self):
        party, parts = self.server.party, urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.form = self.read()
        fields = {**self.query, **self.form}
        if party.keep:
            party.requests.append((parts.path, fields))
        marked = self.headers.get("Origin") or self.headers.get("X-Stand-In") == "browser"
        exchange = party.noted(self.command, parts.path) and party.wire.begin(
            "browser" if marked else "app", party.name, self.command, self.path, self.form,
            base=party.url)
        status, body, headers = 0, "no answer", {}
        try:
            trouble = party.trouble
            answer = trouble and trouble(self.command, parts.path, fields)
            status, body, headers = answer or party.answer(self.command, parts.path, fields, self)
        finally:
            if exchange:
                party.wire.end(exchange, status, body)
        self.reply(status, body, headers or {})

    do_GET = do_POST = do_OPTIONS = do_HEAD = do_PUT = do_DELETE = serve

    def reply(self, status, body, headers):
        kind = "text/html; charset=utf-8"
        if not isinstance(body, (str, bytes)):
            kind, body = "application/json; charset=utf-8", json.dumps(body, ensure_ascii=False)
        body = body.encode("utf-8") if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Party:
    """A pretend server on 127.0.0.1. Subclasses say `name` and write `answer`.

    Tests make trouble with `party.trouble = function(method, path, fields)`: None lets the request
    through, `(status, body, headers)` answers instead; the function may wait on an Event first.
    """

    name = "party"

    def __init__(self, wire=None, port=0):
        self.wire = wire if wire is not None else Wire()
        self.port = port
        self.trouble = None
        self.keep = True
        self.requests = deque(maxlen=20000)  # (path, fields), unmasked, for tests only
        self.server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Listen; after a stop, on the same port as before."""
        self.server = Server(("127.0.0.1", self.port), Request, bind_and_activate=False)
        self.server.party, self.server.live = self, set()
        try:
            self.server.server_bind()
            self.server.server_activate()
        except OSError:
            self.server.server_close()
            self.server = None  # it never listened: there is nothing to stop
            raise
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self):
        """Be unreachable: no listening socket, and every live connection cut."""
        server, self.server = self.server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(server.live):
            try:
                connection.shutdown(2)
            except OSError:
                pass

    def noted(self, method, path):
        """Say whether the wire should hold this request; pages and scripts need not be there."""
        return True

    def answer(self, method, path, fields, request):
        raise NotImplementedError
