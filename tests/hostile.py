"""The app as hostile input and hostile answers meet it: watched, and judged after each of them.

It runs under a watch (Python's audit events) that stops and notes every connection that leaves this
machine and every file written outside DATA_DIR; Home knows what was planted and looks for it.
"""
import json
import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_plus, urlencode

from pretend import ADMINISTRATOR, EMPLOYEE, GOOD_KEY, ROOT, install, until
from steps import change, make_due, stored

# Planted: these must never come out again. Put together, since hypothesis tries literals it finds.
KEY, SECRET, TOKEN, ACCESS, REFRESH = (f"planted-{name}-0123456789" for name in (
    "key", "secret", "application-token", "access-token", "refresh-token"))
STRANGERS = ("token-of-a-stranger", "token-of-an-employee", "token-of-another-portal")
CODE = "hostile.sms"  # the provider's
TEXT, NUMBER = "CAPIBARA".lower(), "2060705529"[::-1]  # planted in every generated message
PLANTED = re.compile(TEXT + "|" + r"\D{0,3}".join(NUMBER))
INSIDE = re.compile(r"Traceback|File \"|app\.py|site-packages|" + re.escape(str(ROOT)))
# An operator's class may raise at an answer: that is logged as a mistake, with its lines, and is a
# doubt. What is raised anywhere else ends a round or a pass, and is seen by "killed" or a 500.
MISTAKE = re.compile(r'^{.*"type": "mistake", "error": "\w+", "where": \[.*\]}$', re.MULTILINE)
SAID = re.compile(r'"portal": "(?:[^"\\]|\\.)*"')  # in totals: Bitrix24's error, as it came
MOST = 100 * 1024  # bytes that the app reads

WATCH = """
import os, sys
DATA, NOTES = {data!r}, os.open({notes!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
CHANGES = {{"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 1, "os.remove": 1,
           "os.rmdir": 1, "os.chmod": 1, "os.truncate": 1, "shutil.rmtree": 1}}

def inside(path):
    path = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else DATA
    return path == "/dev/null" or (path + "/").startswith(DATA + "/")

def watch(event, args):
    wrong = None
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        wrong = not inside(args[0])
    elif event in CHANGES:
        wrong = not all(inside(path) for path in args[:CHANGES[event]])
    elif event == "socket.connect":
        wrong = args[1][0] != "127.0.0.1"
    elif event == "socket.getaddrinfo":
        wrong = args[0] not in ("127.0.0.1", "localhost")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "exec_module"):
        wrong = True
    if wrong:
        os.write(NOTES, (event + " " + repr(args[:2]) + "\\n").encode())
        raise PermissionError("the watch says no")

sys.addaudithook(watch)
"""


def watched(folder):
    """Environment variables that put a Python process under the watch, and its notes."""
    data, notes = os.path.join(folder, "data"), os.path.join(folder, "notes")
    os.mkdir(os.path.join(folder, "watch"))
    with open(os.path.join(folder, "watch", "sitecustomize.py"), "w") as file:
        file.write(WATCH.format(data=data, notes=notes))
    return {"DATA_DIR": data, "PYTHONPATH": os.path.join(folder, "watch")}, notes


class Home:
    """The app under the watch, what must never be seen, and what was already looked through."""

    def __init__(self, world, folder):
        self.world, self.seen, self.elsewhere = world, {}, world.another_portal()
        self.operator_lies = False
        world.portal.application_token = TOKEN
        world.portal.client_secret = world.oauth.clients[world.portal.client_id] = SECRET
        env, self.notes = watched(folder)
        env.update(RETRY_AFTER=0.05, STATUSES_EVERY=0, SENDER_CODE=CODE)
        self.app = world.start_app(**env)
        assert install(world).status_code == 200
        for party in (*world.portals, world.oauth, world.smsru):
            party.keep, party.noted = False, lambda method, path: False
        self.installed = json.loads((self.app.data / "settings.json").read_text("utf-8"))
        self.renew()

    def renew(self, expired=False):
        """Good settings and tokens again, whatever a hostile answer made of them."""
        oauth, portal, saved = self.world.oauth, self.world.portal, self.app.data / "settings.json"
        ours = {"portal": portal, "user": ADMINISTRATOR, "client_id": portal.client_id,
                "expires": time.time() + 3600}
        strangers = ({"client_id": "local.stranger"}, {"user": EMPLOYEE},
                     {"portal": self.elsewhere})
        oauth.tokens = {token: {**ours, **more} for token, more in zip(STRANGERS, strangers)}
        oauth.tokens[ACCESS] = {**ours, "expires": 0 if expired else ours["expires"]}
        oauth.refresh = {REFRESH: ours}
        good = {**self.installed, "handler_key": KEY, "access_token": ACCESS,
                "refresh_token": REFRESH}
        saved.with_suffix(".aside").write_text(json.dumps(good))
        os.replace(saved.with_suffix(".aside"), saved)
        with suppress(FileNotFoundError):  # sending rests no more
            os.utime(self.app.data / "send.lock", (1000, 1000))

    def secrets(self):
        """Whatever must not be seen: what was planted, and tokens made since."""
        oauth = self.world.oauth
        return {KEY, SECRET, TOKEN, GOOD_KEY, *oauth.tokens, *oauth.refresh} - set(STRANGERS)

    def state(self):
        """What a stranger might want to change."""
        portal = self.world.portal
        saved = (self.app.data / "settings.json").read_bytes()
        return saved, str(portal.senders), str(portal.bindings)

    def news(self):
        """What was written to the output and the logs since the last time."""
        found = ""
        for path in [self.app.log, *(self.app.data / "logs").iterdir()]:
            with open(path, encoding="utf-8", errors="replace") as file:
                file.seek(self.seen.get(path, 0))
                found += file.read()
                self.seen[path] = file.tell()
        return found

    def look_around(self):
        """The rules about what an input leaves behind."""
        news = self.news()
        if self.operator_lies:
            news = MISTAKE.sub("", news)
        assert '"type": "mistake"' not in news, news
        assert not INSIDE.search(news.replace(str(self.app.script), "")), news
        assert not PLANTED.search(SAID.sub("", news)), news
        assert not [secret for secret in self.secrets() if secret in news], news
        assert '"note": "killed"' not in news, "a sender died: " + news
        assert '"type": "unreadable"' not in news, news
        assert not Path(self.notes).read_text("utf-8")
        assert {path.name for path in self.app.data.iterdir() if path.suffix != ".tmp"} <= {
            "queue", "logs", "settings.json", "settings.lock", "statuses.lock", "send.lock"}
        assert self.app.running

    def judge(self, sent, answer, worst=0):
        """The rules about an answer; returns its status and its error code."""
        status, text = answer[0], answer[1].decode("utf-8", "replace")
        error = re.match(r'{"error": "(\w+)"', text)
        assert status < 500 or status == worst, answer
        page = text.lstrip().startswith("<")  # the frame's own tokens go back in that very page
        assert not [one for one in INSIDE.findall(text) if one not in unquote_plus(sent)], text
        back = sent if page else KEY if "HANDLER" in text and "/save" in sent[:10] else ""
        assert not [one for one in self.secrets() if one in text and one not in back], text
        foreign = page or status == 503  # with another party's own error, as it came
        assert foreign or not PLANTED.search(SAID.sub("", text)), text
        return status, error[1] if error else ""

    @contextmanager
    def rules(self):
        """What happens inside must keep to the rules; what it wrote is not another one's."""
        try:
            yield
            self.look_around()
        except AssertionError:
            self.news()
            raise

    def heal(self):
        """Everybody is well again."""
        world = self.world
        world.portal.trouble = world.oauth.trouble = world.smsru.trouble = None
        world.smsru.delay = 0
        self.renew()

    def drain(self):
        """Nothing that was accepted stays in the way of the queue."""
        self.heal()

        def empty():
            for message_id, message in stored(self.app).items():
                if message["operator_id"]:  # as if months had passed, for an id that was a lie
                    change(self.app, message_id, sent_at=1000)
            make_due(self.app)
            return self.one_pass()["waiting"] == 0
        until(empty, 30, "the queue does not become empty")
        self.look_around()
        assert not [path for path in (self.app.data / "queue").rglob("*") if path.is_file()]
        assert not list(self.app.data.glob("*.tmp"))

    def one_pass(self):
        answer = exchange(self, [post(f"/statuses?key={KEY}", b"", method="GET")])
        assert self.judge("", answer)[0] == 200
        return json.loads(answer[1])


# The wire ----------------------------------------------------------------------------------------

def exchange(home, pieces, pause=0):
    """Send these bytes, end our side, read the answer: (status, body); status 0: no answer."""
    with socket.create_connection(("127.0.0.1", int(home.app.env["PORT"])), 20) as line:
        try:
            for piece in pieces:  # a number: so many bytes of no interest
                line.sendall(piece if isinstance(piece, bytes) else b"x" * piece)
                time.sleep(pause)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before it was read
        answer = b""
        try:
            while chunk := line.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.\d (\d{3}) ", head)
    return int(found[1]) if found else 0, body or answer


def encode(fields, kind):
    """A body and its Content-Type; only the first two are what Bitrix24 sends."""
    if kind == "json":
        return json.dumps(fields).encode(), "application/json"
    if kind == "multipart":
        parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
                        for name, text in fields.items())
        return (parts + "--b--").encode("utf-8", "replace"), "multipart/form-data; boundary=b"
    code = {"cp1251": "cp1251", "utf-16": "utf-16"}.get(kind, "utf-8")
    if kind == "plain":  # nothing is escaped
        body = "&".join(f"{name}={text}" for name, text in fields.items())
        return body.encode("utf-8", "replace"), "text/plain"
    return (urlencode(fields, encoding=code, errors="replace").encode(),
            "application/x-www-form-urlencoded")


def post(path, body, kind="application/x-www-form-urlencoded", length=None, more="", method="POST"):
    head = (f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n{more}\r\n")
    return head.encode("latin-1", "replace") + body
