"""Bitrix24 in a box: the page that a person opens, on the pretend portal's own address.

The page itself is in tests/pretend/page/. Here are the routes it asks, the answers to what the
application says to it by postMessage, and the switches that make trouble. What it asks:

GET  /box/news?after=LAST&stamp=STAMP   waits until something has changed, 5 s at most; answers
     exchanges   begun or answered since: see lesson.py. One that waits has `pending`, and comes
                 again under the same `n` when it is answered; rows are in the order of `n`
     last, state.stamp   to be sent with the next question; -1 asks for what there is
     messages    id, to, body, status
     state       address, installed, sender, version, key, on (switches), operator, endings
                 ([{end, means: undelivered | failed | doubt}]), phone (one that gets through),
                 queue (in words), counts (per folder), rests ({until, seconds, why} or null),
                 life (another one: everything was started over, reload), next:
     state.next  what to do next, for {"administrator": ..., "employee": ...}: step, one of
                 open | uninstalled   not installed; with the form in the frame it is `framed`: save
                 employee             not installed, and only an administrator may
                 send                 installed; nothing sent yet, or the app did not take it
                 watch                `what`: operator | status; `until`, `seconds`: the next try
                 delivered            `status` of the newest message; try trouble, try the code
GET  /box/code?name=send    lesson.source(name): first, last, doc, text, script, next; or 404
GET  /box/disk              disk.Disk.look(): folders, settings, rests
POST /box/over              fresh data, not installed, the wire emptied: {"note": "over", state}
POST /box/open command send switch      as the page's buttons and its frame need them

Nothing here knows app.py's insides.
"""
import hashlib
import http.client
import json
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import requests

from .bitrix24 import ADMINISTRATOR, EMPLOYEE
from .disk import Disk
from .lesson import Lesson, source
from .oauth import HOUR, random_id
from .smsru import GOOD_KEY
from .wire import Party

FOLDER = Path(__file__).resolve().parent / "page"
FILES = {"/": "box.html", **{f"/box/{path.name}": path.name for path in FOLDER.iterdir()}}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "application/javascript",
         ".json": "application/json"}
SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
POLICY = "default-src 'self'; img-src data:; frame-src *; form-action *; frame-ancestors 'none'"
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
NEWEST_EXCHANGES, NEWEST_MESSAGES = 400, 300  # as many as the page shows
PATIENCE, LOOK = 5, 0.1  # seconds that a question for news waits; between looks at the disk
BURST = 100
ENV = {"STATUSES_EVERY": 1, "RETRY_AFTER": 2, "SMS_API_KEY": GOOD_KEY,  # the app's, quick to watch
       "SENDER_CODE": "fastsms"}  # as in the code's examples, whatever a fork calls its own
PHONE = "+7 (925) 507-06-55"  # it gets through, whoever the operator is
ENDINGS = {"11": ("delivery", 104), "22": ("codes", 207)}  # last digits → what SMS.ru does
MEANS = {"smsru": {"11": "undelivered", "22": "failed"},  # the operator → what they lead to
         "demo": {"01": "undelivered", "02": "failed", "03": "doubt"}}


class Endings(dict):
    """SMS.ru's tables for a person to try: a number's last two digits decide."""

    def get(self, number, default=None):
        return super().get(number[-2:], default)


class Tap(Party):
    """Stands in front of the app, so that what a real browser tells it is on the wire as well.

    Everybody reaches the app here, headers untouched. Only a browser's requests are noted: they
    have an Origin, and the portal writes its own calls down by itself.
    """

    name, app = "app", None

    def noted(self, method, path):
        return False

    def answer(self, method, path, fields, request):
        if not request.headers.get("Origin"):
            return self.forward(method, request)
        exchange = self.wire.begin("browser", "app", method, request.path, request.form,
                                   base=self.url)
        status, body, headers = self.forward(method, request)
        self.wire.end(exchange, status, body)
        return status, body, headers

    def forward(self, method, request):
        connection = http.client.HTTPConnection(urlsplit(self.app.url).netloc, timeout=60)
        headers = {name: value for name, value in request.headers.items()
                   if name.lower() not in HOP}
        try:
            connection.request(method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return 502, "<html><title>502 Bad Gateway</title></html>", {}
        finally:
            connection.close()
        return answer.status, body, {name: value for name, value in answer.getheaders()
                                     if name.lower() not in HOP}


class Frames:
    """The application's frames: what opens them, and what they are told by postMessage."""

    def open(self, fields):
        """The POST that opens the application: install until installFinish, index after it."""
        user, lang = self.user(fields), "ru" if fields.get("lang") == "ru" else "en"
        page = "index" if self.portal.installed else "install"
        url, body = self.portal.open_frame(user, page, lang)
        query = dict(parse_qsl(urlsplit(url).query))
        self.frames[query["APP_SID"]] = {"user": user, "lang": lang, "page": page, "body": body}
        return {"url": url, "fields": body, "page": page, "sid": query["APP_SID"],
                "name": "|".join(query[name] for name in ("DOMAIN", "PROTOCOL", "APP_SID"))}

    def command(self, fields):
        """What a frame said to the portal's page, and what the page has to say back."""
        frame, command = self.frames.get(fields.get("sid")), fields.get("command", "")
        if not frame:
            return {"answer": None}
        answers = {"getInitData": self.init_data, "refreshAuth": self.refresh_auth,
                   "setInstallFinish": self.install_finish}
        answer = answers[command](frame) if command in answers else True
        said = {name[7:-1]: text for name, text in fields.items() if name.startswith("params[")}
        self.world.wire.add("browser", "portal", "postMessage", command, said, None, answer,
                            script=frame["page"])
        return {"answer": answer}

    def init_data(self, frame):
        body, portal = frame["body"], self.portal
        return {"DOMAIN": portal.domain, "PROTOCOL": 0, "PATH": "/rest", "LANG": frame["lang"],
                "AUTH_ID": body["AUTH_ID"], "REFRESH_ID": body["REFRESH_ID"],
                "AUTH_EXPIRES": HOUR, "MEMBER_ID": portal.member_id,
                "IS_ADMIN": portal.users[frame["user"]]["ADMIN"],
                "INSTALL": not portal.installed, "FIRST_RUN": False, "PLACEMENT": "DEFAULT",
                "PLACEMENT_OPTIONS": {}, "USER_OPTIONS": {}, "APP_OPTIONS": {}}

    def refresh_auth(self, frame):
        tokens = self.world.oauth.issue(self.portal, frame["user"])
        frame["body"].update(AUTH_ID=tokens["access_token"], REFRESH_ID=tokens["refresh_token"])
        return {name: frame["body"][name] for name in ("AUTH_ID", "REFRESH_ID", "AUTH_EXPIRES")}

    def install_finish(self, frame):
        """Without the right to install, the application stays not installed."""
        allowed = self.portal.users[frame["user"]]["ADMIN"]
        self.portal.installed = self.portal.installed or allowed
        return allowed


class Switches:
    """What can go wrong. Each answers what there is to say: the note's name and its values."""

    def operator_down(self, fields):
        self.smsru.down = on(fields)

    def no_money(self, fields):
        self.smsru.balance = 0.0 if on(fields) else 1000.0

    def portal_503(self, fields):
        self.portal.trouble = busy if on(fields) else None

    def token_expired(self, fields):
        self.portal.expire_tokens()

    def renamed(self, fields):
        self.portal.rename()
        return {"address": self.portal.url}

    def robot(self, fields):
        return self.send(fields, robot=True)

    def twice(self, fields):
        """The cloud repeats a call: the same message_id comes again at once."""
        message_id = random_id()
        first, second = (self.send(fields, message_id=message_id) for _ in range(2))
        return {**second, "status": f"{first['status']}, {second['status']}"}

    def forged(self, fields):
        """A stranger who knows the addresses, but no secret: a message, then an uninstall."""
        message = self.portal.message_fields("+79990000000", "spam", random_id(), self.code, True)
        event = {"event": "ONAPPUNINSTALL", "data[CLEAN]": "1",
                 "auth[application_token]": random_id(),
                 "auth[member_id]": self.portal.member_id}
        calls = [("handler?key=" + random_id(), message), ("install", event)]
        statuses = [str(self.call_app("stranger", path, sent)) for path, sent in calls]
        return {"status": ", ".join(statuses)}

    def burst(self, fields):
        """A hundred messages at once, to numbers that all exist."""
        began, text = time.time(), fields.get("text", "")
        messages = [(f"+79{number:03d}000055", f"{text} ({number + 1}/{BURST})", False, None,
                     self.code) for number in range(BURST)]
        taken = sum(status == 200 for _, status in self.portal.send_many(messages))
        return {"taken": taken, "count": BURST, "seconds": round(time.time() - began, 1)}

    def update(self, fields):
        return {"status": self.portal.fire("ONAPPUPDATE"), "version": self.portal.version}

    def uninstall(self, fields):
        status = self.portal.fire("ONAPPUNINSTALL", CLEAN=int(on(fields, "clean")))
        self.frames.clear()
        self.removed = True
        return {"status": status}


NEEDS_APP = ("robot", "twice", "burst", "update", "uninstall")
SWITCHES = ("operator-down", "no-money", "token-expired", "portal-503", "renamed", "forged",
            *NEEDS_APP)


class Next:
    """What to do next: from what the portal and the app's disk say, so a reload changes nothing."""

    def next(self):
        step = self.next_message() if self.code else self.next_install()
        employee = step if self.code else {"step": "employee"}
        return {"administrator": step, "employee": employee}

    def next_install(self):
        return {"step": "uninstalled" if self.removed else "open", "framed": "save"}

    def next_message(self):
        due = self.disk.due() if self.disk else {}
        told = [one["history"][1:] for one in list(self.portal.messages.values())[-1:]]
        if not due:
            return {"step": "delivered", "status": told[0][-1]} if any(told) else {"step": "send"}
        with_us = {name: when for name, when in due.items() if name in ("new", "sending")}
        what, until = ("operator" if with_us else "status"), min((with_us or due).values())
        return {"step": "watch", "what": what, "until": until,
                "seconds": round(max(0, until - time.time()), 1)}


class Box(Switches, Frames, Next):
    """The page's server side, on top of the world; the portal asks it for what is not REST."""

    def __init__(self, world):
        self.world, self.portal, self.smsru = world, world.portal, world.smsru
        self.frames = {}  # APP_SID → who opened which page, and the tokens it was given
        self.lesson, self.life, self.removed = Lesson(world.portal), 1, False
        self.disk, self.restarting = None, threading.Lock()
        self.tap = Tap(world.wire)
        self.smsru.delay = 1.5  # seconds, so that "sent" can be seen
        for table in ("delivery", "codes"):
            rules = {end: code for end, (name, code) in ENDINGS.items() if name == table}
            setattr(self.smsru, table, Endings(rules))
        self.portal.pages["/api/v1/"] = (KINDS[".js"], (FOLDER / "bx24.js").read_text("utf-8"))
        self.portal.site = self.answer
        self.asked = {"/box/open": self.open, "/box/command": self.command,
                      "/box/send": self.send, "/box/switch": self.switch, "/box/over": self.over}

    def start(self, app):
        self.tap.app, self.disk = app, Disk(app.data, self.world.wire)
        self.portal.app_url = self.tap.start().url + "/"
        return self

    def stop(self):
        self.tap.stop()

    @property
    def code(self):
        """The CODE of the provider that the application registered, if it has."""
        return next(iter(self.portal.senders), "") if self.portal.installed else ""

    def user(self, fields):
        return EMPLOYEE if fields.get("user") == str(EMPLOYEE) else ADMINISTRATOR

    def answer(self, method, path, fields, request):
        """The page, its files, its news (GET), and its questions (POST, from this page only)."""
        if method == "GET" and path in FILES:
            file = FOLDER / FILES[path]
            return 200, file.read_bytes(), {
                "Content-Type": KINDS[file.suffix] + "; charset=utf-8",
                "Content-Security-Policy": POLICY, **SAFE}
        if method == "GET" and path in ("/box/news", "/box/code", "/box/disk"):
            found = {"/box/news": self.news, "/box/code": self.code_of,
                     "/box/disk": lambda fields: self.disk and self.disk.look()}[path](fields)
            return 200 if found else 404, found or {"error": "NOT_FOUND"}, SAFE
        ours = request.headers.get("Origin") in (None, self.portal.url)
        if method == "POST" and path in self.asked and ours:
            return 200, self.asked[path](fields), SAFE
        return 404 if ours else 403, {"error": "NOT_FOUND" if ours else "OTHER_ORIGIN"}, SAFE

    def news(self, fields):
        """What changed on the wire after change `after`, and how everything is now.

        A page that has seen something, and all the rest like that, waits here for more; one that
        asks for the first time (-1) is told at once.
        """
        after, end = int(fields.get("after", -1)), time.monotonic() + PATIENCE
        while after >= 0 and self.as_seen(fields) and time.monotonic() < end:
            if self.world.wire.changed(after, LOOK):
                break
        last, exchanges = self.lesson.read(self.world.wire, max(after, 0))
        with self.portal.lock:
            messages = list(self.portal.messages.items())[-NEWEST_MESSAGES:]
        return {"exchanges": exchanges[-NEWEST_EXCHANGES:], "last": last,
                "messages": [{"id": name, **{key: one[key] for key in ("to", "body", "status")}}
                             for name, one in messages],
                "state": self.state()}

    def as_seen(self, fields):
        """Is everything but the wire as the page has it already?"""
        queue = fields.get("queue", self.queue())
        return queue == self.queue() and fields.get("stamp") in (None, self.stamp())

    def code_of(self, fields):
        return source(fields.get("name", ""))

    def queue(self):
        """How many messages lie in each folder of the app's queue, in words."""
        counts = self.disk.count() if self.disk else {}  # none: an application that is not ours
        return ", ".join(f"{folder}\u00a0{count}" for folder, count in counts.items())

    def stamp(self):
        """A short text that is another one as soon as something of the state or the disk is."""
        parts = [self.disk.stamp() if self.disk else "", self.known(),
                 [(name, one["status"]) for name, one in list(self.portal.messages.items())]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def known(self):
        """The part of the state that does not change by itself as time goes by."""
        sender = self.portal.senders.get(self.code, {})
        names = [text for field, text in sender.items() if field.split("[")[0] == "NAME"]
        operator = self.tap.app.env["SMS_OPERATOR"] if self.tap.app else "smsru"
        endings = [{"end": end, "means": means}
                   for end, means in MEANS.get(operator, {}).items()]
        return {"address": self.portal.url, "installed": self.portal.installed,
                "sender": names[0] if names else "", "version": self.portal.version,
                "key": GOOD_KEY, "operator": operator, "endings": endings, "phone": PHONE,
                "life": self.life, "removed": self.removed, "on": {
                    "operator-down": self.smsru.down, "no-money": self.smsru.balance < 1,
                    "portal-503": self.portal.trouble is busy}}

    def state(self):
        stamp = self.stamp()  # first: what changes meanwhile is news again
        return {**self.known(), "stamp": stamp, "queue": self.queue(),
                "counts": self.disk.count() if self.disk else {},
                "rests": self.disk.rests() if self.disk else None, "next": self.next()}

    def over(self, fields):
        """Start over: the app again with nothing on its disk, at the same address."""
        with self.restarting:
            app = self.tap.app
            app.stop()
            shutil.rmtree(app.data, ignore_errors=True)
            self.forget()
            app.start()
        return {"note": "over", "state": self.state()}

    def forget(self):
        """What the portal, the operator and the wire know of the app so far."""
        with self.portal.lock:
            self.portal.kill_tokens()
            self.portal.senders, self.portal.bindings, self.portal.messages = {}, [], {}
            self.portal.installed, self.portal.version, self.portal.trouble = False, 1, None
        with self.smsru.lock:
            self.smsru.sent.clear()
            self.smsru.down, self.smsru.balance = False, 1000.0
        self.frames.clear()
        self.life, self.removed = self.life + 1, False
        self.world.wire.clear()

    def send(self, fields, **kind):
        """Somebody writes a message in the card; the portal calls the handler."""
        if not self.code:
            return {"note": "not-installed"}
        message_id, status = self.portal.send_message(
            fields.get("to", ""), fields.get("text", ""), code=self.code,
            author=self.user(fields), **kind)
        return {"note": "sent", "status": status, "id": message_id}

    def switch(self, fields):
        """Turn a switch: the note to show is the switch's own, with -off when it goes back."""
        name = fields.get("name", "")
        if name not in SWITCHES:
            return {"note": "unknown"}
        if name in NEEDS_APP and not self.code:
            return {"note": "not-installed"}
        found = getattr(self, name.replace("-", "_"))(fields) or {}
        off = "" if fields.get("on", "1") == "1" else "-off"
        return {**found, "note": name + off, "state": self.state()}

    def call_app(self, who, path, fields):
        """A call of somebody who is not the portal; returns the app's HTTP status, 0 for none."""
        try:
            answer = self.world.wire.post(who, "app", self.portal.app_url + path, fields)
            return answer.status_code
        except requests.RequestException:
            return 0


def on(fields, name="on"):
    return fields.get(name) == "1"


def busy(method, path, fields):
    """The portal's REST is overloaded; its pages are not."""
    if not path.startswith("/rest/") or method == "OPTIONS":
        return None
    return 503, {"error": "QUERY_LIMIT_EXCEEDED", "error_description": "Too many requests"}, {
        "Access-Control-Allow-Origin": "*"}
