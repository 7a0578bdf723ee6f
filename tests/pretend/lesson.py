"""What the box says beside each request: why it is made, how it ended, which function did it.

Tables first. The sentences are in page/why.json: kind of request → outcome → {"outcome": colour,
"en": [short, why], "ru": [short, why]}; `kind` and `ending` say how both are named. Names of
app.py's functions stand in ANSWERED and WAY only; tests/test_lesson.py holds them to the file.

To what wire.py wrote down, `Lesson.read(wire)` adds, for each exchange:

    why, short   {"en", "ru"}: one sentence; at most 45 characters for the row
    outcome      good | expected | bad | none: how it ended, whatever the HTTP status says
    function     the one function of app.py that sent or answered it; source(name) shows it
    group        install | save | message:ID | pass:N | events | other
    messages     the ids of the messages that it is about: to highlight them in the card
    quiet        true: to be folded (an empty pass, getInitData, resizeWindow, ...)
    curl         the request as a command, secrets masked as on the wire; "" for a postMessage
"""
import ast
import json
import re
import shlex
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from .wire import brief

APP = Path(__file__).resolve().parents[2] / "app.py"
SOURCE = APP.read_text("utf-8")
TREE = ast.parse(SOURCE)  # here, as Python 3.11's ast fails when two threads parse at once
WHY = json.loads((Path(__file__).parent / "page" / "why.json").read_text("utf-8"))

ANSWERED = {  # kind of request → the function of app.py that answered it, or sent it
    "/install": "install", "/save": "save", "/index": "index", "/handler": "handler",
    "ONAPPINSTALL": "install", "ONAPPUPDATE": "install", "ONAPPUNINSTALL": "install",
    "app.info": "CRest.check_token", "profile": "CRest.check_token",
    "app.info, renamed": "CRest.get_new_endpoint", "oauth/token": "CRest.get_new_auth",
    "event.bind": "register", "event.unbind": "register",
    "messageservice.sender.update": "register", "messageservice.sender.add": "register",
    "batch": "tell", "/auth/check": "SmsRu.check", "/sms/send": "SmsRu.send",
    "/sms/status": "SmsRu.statuses", "getInitData": "page", "refreshAuth": "page",
    "setInstallFinish": "page", "resizeWindow": "page", "setTitle": "page",
    "reloadWindow": "page", "closeApplication": "page"}
WAY = {  # function → the lesson's script that it stands for, the next function of the way
    "install": ("install.php", "save"),
    "save": ("install.php", "CRest.check_token"),
    "CRest.check_token": ("crest.php", "SmsRu.check"),
    "SmsRu.check": ("the operator's API", "CRest.install_app"),
    "CRest.install_app": ("crest.php", "register"),
    "register": ("install.php", "CRest.call"),
    "index": ("index.php", "page"),
    "page": ("index.php", "save"),
    "handler": ("handler.php", "Queue.put"),
    "Queue.put": ("some queue", "send_new"),
    "send_new": ("handler.php", "send_round"),
    "send_round": ("handler.php", "hand_over"),
    "hand_over": ("handler.php", "SmsRu.send"),
    "SmsRu.send": ("the operator's API", "settle"),
    "settle": ("handler.php", "one_pass"),
    "one_pass": ("statuses.php", "ask"),
    "ask": ("statuses.php", "SmsRu.statuses"),
    "SmsRu.statuses": ("the operator's API", "tell"),
    "tell": ("statuses.php", "CRest.call_batch"),
    "CRest.call_batch": ("crest.php", "CRest.call"),
    "CRest.call": ("crest.php", "CRest.call_curl"),
    "CRest.call_curl": ("crest.php", "CRest.request"),
    "CRest.request": ("crest.php", "post"),
    "post": ("crest.php", ""),
    "CRest.get_new_auth": ("crest.php", "CRest.call"),
    "CRest.get_new_endpoint": ("crest.php", "CRest.call")}
QUIET = ("getInitData", "resizeWindow", "setTitle")
EVENTS = ("ONAPPINSTALL", "ONAPPUPDATE", "ONAPPUNINSTALL")
OUTER = {"/install": "install", "/save": "save", "/index": "other",  # what is asked meanwhile
         **dict.fromkeys(EVENTS, "events")}                          # belongs to it
GAP, LONGEST_PAUSE = 0.3, 8.5  # seconds between two passes; between a 503 and its repetition


# ---- One exchange: its kind, how it ended, what to say about it ---------------------------
def kind(one):
    """Name a request: a REST method, a path, an event or a command; a stranger's differently."""
    path = urlsplit(one["path"]).path
    if one["to"] == "app":
        name = one["fields"].get("event", "").upper() or "/" + (path.rsplit("/", 1)[-1] or "index")
        return ("stranger " if one["who"] == "stranger" else "") + name
    if one["to"] == "operator" or one["method"] == "postMessage":
        return path
    return re.sub(r"^/(rest/)?|(\.json)?/?$", "", path)


def ending(one, name):
    """Name how it ended: "ok", a code out of the answer, "HTTP 503", or "silence"."""
    answer = one["answer"]
    if one["status"] == 0:
        return "silence"
    if answer is False:
        return "refused"
    if not isinstance(answer, dict):
        return f"HTTP {one['status']}" if (one["status"] or 0) >= 300 else "ok"
    if "already" in str(answer.get("error_description")) and name == "event.bind":
        return "bound already"
    if "error" in answer:
        return str(answer["error"])
    special = {"batch": batch_ending, "profile": profile_ending, "/handler": handler_ending}
    if one["to"] == "operator":
        return operator_ending(answer)
    return special[name](one) if name in special else "ok"


def batch_ending(one):
    """An error of one command is inside an answer that is a success as a whole."""
    errors = one["answer"].get("result", {}).get("result_error") or {}
    found = list(errors.values()) if isinstance(errors, dict) else errors
    return found[0]["error"] if found else "ok"


def profile_ending(one):
    return "ok" if one["answer"].get("result", {}).get("ADMIN") else "employee"


def handler_ending(one):
    return "ok" if any(name.startswith("auth[") for name in one["fields"]) else "robot"


def operator_ending(answer):
    """SMS.ru answers 200 and hides its own code inside, in one entry a message."""
    entries = list((answer.get("sms") or {"": answer}).values())
    codes = [entry.get("status_code") for entry in entries]
    if "sms" not in answer or "sms_id" in entries[0] or entries[0].get("status") == "ERROR":
        return "ok" if codes[0] == 100 else str(codes[0])
    final = [code for code in codes if code not in (100, 101, 102)]
    bad = [code for code in final if code not in (103, 110)]
    return "undelivered" if bad else "ok" if final else "under way"


def words(one, name, end):
    """Find the entry of the table: the kind's own, or its receiver's, or the one for anything."""
    for key in (name, "to " + one["to"]):
        if end in WHY.get(key, {}):
            return WHY[key][end]
    return WHY["anything"]["other"]


def curl(one):
    """Write the request as a command for a shell; JSON is shown as the form that is as good."""
    if one["method"] == "postMessage" or not one["base"]:
        return ""
    parts = ["curl", "-X", one["method"], one["base"] + one["path"]]
    for name, value in one["fields"].items():
        parts += ["--data-urlencode", f"{name}={value}"]
    return " ".join(shlex.quote(part) for part in parts)


# ---- All of them, in their order: what belongs together -----------------------------------
class Lesson:
    """Reads the wire as it grows: which request belongs to which Save, message or pass."""

    def __init__(self, portal):
        self.portal, self.lock = portal, threading.Lock()
        self.forget([])

    def forget(self, changes):
        self.changes, self.seen = changes, 0
        self.group, self.about = {}, {}  # n → its group, the messages that it is about
        self.outer = []      # exchanges with the app, of which others may be a part
        self.accepted = {}   # message id → the operator's id, "" while it is being sent
        self.known = set()   # message ids that the handler was called with
        self.repeated = set()  # n of calls with a message_id that was known already
        self.passes, self.last = 0, None

    def read(self, wire, after=0):
        """Return the last change, and what changed since, each exchange once, for the page."""
        with self.lock:
            with wire.news:
                changes, exchanges = wire.changes, list(wire.exchanges)
                count = len(changes)
            if changes is not self.changes:
                self.forget(changes)
            for change in changes[self.seen:count]:
                (self.begun if change["pending"] else self.ended)(change, exchanges)
            self.seen = max(self.seen, count)
            fresh = sorted({one["n"] for one in changes[after:count]})
            return count, [self.view(exchanges[n - 1]) for n in fresh]

    def begun(self, one, exchanges):
        self.about[one["n"]] = self.messages_of(one)
        self.group[one["n"]] = self.group_of(one, exchanges)
        if one["to"] == "app" and kind(one) in OUTER:
            self.outer.append(one["n"])

    def ended(self, one, exchanges):
        """Remember by which id the operator knows a message now, or that it did not take it."""
        if kind(one) != "/sms/send":
            return
        took = ending(one, "/sms/send") == "ok"
        for message_id in self.about[one["n"]]:
            del self.accepted[message_id]
            if took:
                entry, = one["answer"]["sms"].values()
                self.accepted[message_id] = entry["sms_id"]

    def messages_of(self, one):
        """Say which messages a request is about: by id, the operator's id, or number and text."""
        name, fields = kind(one), one["fields"]
        if name == "/handler":
            message_id = fields.get("message_id", "")
            if message_id in self.known:
                self.repeated.add(one["n"])
            self.known.add(message_id)
            return [message_id]
        if name == "/sms/send":
            return self.sent_now(fields.get("to", ""), fields.get("msg", ""))
        if name == "/sms/status":
            asked = fields.get("sms_id", "").split(",")
            return [ours for ours, theirs in self.accepted.items() if theirs and theirs in asked]
        commands = [text for field, text in fields.items() if field.startswith("cmd[")]
        told = [dict(parse_qsl(urlsplit(text).query)).get("MESSAGE_ID") for text in commands]
        return [message_id for message_id in told if message_id]

    def sent_now(self, to, text):
        """Find the message with this number and text that is not with the operator yet."""
        for message_id, message in list(self.portal.messages.items()):
            same = re.sub(r"\D", "", message["to"])[-10:] == to[-10:] and message["body"] == text
            if same and message_id not in self.accepted:
                self.accepted[message_id] = ""
                return [message_id]
        return []

    def group_of(self, one, exchanges):
        name = kind(one)
        if name in ("/handler", "/sms/send"):
            return "message:" + self.about[one["n"]][0] if self.about[one["n"]] else "other"
        if one["who"] != "app":
            if name in ("setInstallFinish", "messageservice.sender.add"):
                return "save"  # steps 2 and 3 of the form's three
            script = one["script"] if one["method"] == "postMessage" else ""
            return "install" if script == "install" else OUTER.get(name, "other")
        for n in reversed(self.outer):
            outer = exchanges[n - 1]
            if outer["pending"] or outer["ended"] > one["began"]:
                alone = name in ("/sms/status", "batch")
                return self.pass_of(one, exchanges) if alone else self.group[n]
        return self.pass_of(one, exchanges)

    def pass_of(self, one, exchanges):
        """A pass goes on while its requests follow each other, or repeat after a pause."""
        last = exchanges[self.last - 1] if self.last else None
        if last is None or not (last["pending"] or self.goes_on(last, one)):
            self.passes += 1
        self.last = one["n"]
        return f"pass:{self.passes}"

    def goes_on(self, last, one):
        gap = one["time"] - last["time"] - last["seconds"]
        again = ending(last, kind(last)) in ("QUERY_LIMIT_EXCEEDED", "expired_token", "HTTP 302")
        return gap < (LONGEST_PAUSE if again else GAP)

    def view(self, one):
        """Add to an exchange what the page shows beside it; a waiting one has no outcome yet."""
        n, name = one["n"], kind(one)
        if name == "app.info" and self.group[n].startswith("pass"):
            name = "app.info, renamed"
        end = "ok" if one["pending"] else ending(one, name)
        if n in self.repeated and end in ("ok", "robot"):
            end = "again"
        entry = words(one, name, end)
        return {**one, "answer": brief(one["answer"]), "kind": name, "ending": end,
                "outcome": "none" if one["pending"] else entry["outcome"],
                "short": {lang: entry[lang][0] for lang in ("en", "ru")},
                "why": {lang: entry[lang][1] for lang in ("en", "ru")},
                "function": ANSWERED.get(name.replace("stranger ", ""), ""),
                "group": self.group[n], "messages": self.about[n],
                "quiet": name in QUIET or end == "under way", "curl": curl(one)}


# ---- app.py's own text --------------------------------------------------------------------
def source(name):
    """Read a function or method from app.py: where it stands, its docstring, its text.

    `first` and `last` are line numbers, decorators included; None if there is no such function.
    """
    body = TREE.body
    for part in name.split("."):
        node = next((one for one in body if getattr(one, "name", "") == part), None)
        body = getattr(node, "body", [])
    if not isinstance(node, ast.FunctionDef):
        return None
    first = min([node.lineno, *[one.lineno for one in node.decorator_list]])
    lines = SOURCE.splitlines()[first - 1:node.end_lineno]
    script, following = WAY.get(name, ("", ""))
    return {"name": name, "file": APP.name, "first": first, "last": node.end_lineno,
            "doc": ast.get_docstring(node) or "", "text": "\n".join(lines),
            "script": script, "next": following}
