"""A Bitrix24 message provider in one file: the tutorial's PHP scripts, one to one, in Python.

Bitrix24 asks us to send a text message. We save it, answer, hand it to an SMS operator, ask the
operator what became of it and report that back.

    settings.php     the environment            "Settings" below
    install.php      POST /install              install()       the form; application events
                     POST /save                 save()          what the form's onsubmit sends
    index.php        POST /index, POST /        index()         the settings page
    handler.php      POST /handler?key=SECRET   handler()       takes one message
    statuses.php     GET /statuses?key=SECRET   statuses()      one pass over the queue
    checkserver.php  GET /checkserver           checkserver()   can this server run it?
    crest.php                                   class CRest
    (some queue)     data/queue/                class Queue
    (operator's API)                            class Demo, class SmsRu

Replace here: whatever is marked "Replace me"; "Differs from PHP" marks what is not as in PHP.
Left out on purpose, but in tests/forks/: several portals, a database, pushed receipts.
"""

import fcntl
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import lru_cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from secrets import compare_digest, token_hex, token_urlsafe
from urllib.parse import parse_qsl, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import requests
import urllib3
from bottle import Bottle, HTTPResponse, request, response, template


# ---- Settings (settings.php): the environment, then constants with their units ------------------
def env(name, default=""):  # in the default's own type: text, a number, a Path
    try:
        return type(default)(os.environ.get(name) or default)
    except ValueError:
        sys.exit(f"{name} must be a number, such as {default}")


HERE = Path(__file__).resolve().parent
VIEWS = [str(HERE / "views")]  # one list for good: bottle's cache of templates knows it by its id
CLIENT_ID, CLIENT_SECRET = env("C_REST_CLIENT_ID"), env("C_REST_CLIENT_SECRET")
MISSING = [name for name in ("C_REST_CLIENT_ID", "C_REST_CLIENT_SECRET") if not env(name)]
DATA_DIR = env("DATA_DIR", HERE / "data")  # a folder of its own: it becomes 0700
QUEUE, SETTINGS = DATA_DIR / "queue", DATA_DIR / "settings.json"
LOGS_DIR, BLOCK_LOG = env("C_REST_LOGS_DIR", DATA_DIR / "logs"), env("C_REST_BLOCK_LOG") == "1"
OAUTH_URL = env("OAUTH_URL", "https://oauth.bitrix24.tech").rstrip("/")
BX24_JS_URL = env("BX24_JS_URL", "https://api.bitrix24.com/api/v1/")
PUBLIC_URL = env("PUBLIC_URL")  # with its path, https://mydomain.ru/sms/
HOST, PORT = env("HOST", "127.0.0.1"), env("PORT", 8080)
STATUSES_EVERY = env("STATUSES_EVERY", 60.0)  # seconds between passes; 0 leaves them to cron
RETRY_AFTER = env("RETRY_AFTER", 60.0)  # seconds; doubles with each try, at most an hour
GIVE_UP_UNSENT = env("GIVE_UP_UNSENT", 24.0)  # hours, then the message is "failed"
GIVE_UP_WAITING = env("GIVE_UP_WAITING", 72.0)  # hours, then it is "undelivered"
SMS_OPERATOR, SMS_API_KEY = env("SMS_OPERATOR", "demo"), env("SMS_API_KEY")
SMSRU_URL, SMSRU_TEST = env("SMSRU_URL", "https://sms.ru").rstrip("/"), env("SMSRU_TEST", 0)

# Replace me: the sender as users see it in Bitrix24 (the pages' texts are in views/)
SENDER_CODE, SENDER_NAME = env("SENDER_CODE", "fastsms"), "Provider FastSms"
SENDER_DESCRIPTION = "Description sms provider"  # one text, as NAME: {"ru": ...} would get lost
DEMO = " (demo: nothing is sent)"  # behind the name, as long as the operator is Demo

HOUR, KEEP = 3600, 14 * 24 * 3600  # seconds; no message is kept longer than KEEP
MAX_BODY, MAX_ANSWER = 100 * 1024, 1024 * 1024  # bytes that come in, bytes of an answer
TIMEOUT = (5, 30)  # seconds to connect, seconds of silence
PAUSES_503 = (0.5, 1, 2, 4, 8, 0)  # seconds after each try; Bitrix24 takes 2 requests a second
PRESS_SAVE = "an administrator must open the application and press Save"
STOP = threading.Event()  # set by SIGTERM and Ctrl-C
app = application = Bottle()  # WSGI servers look for "application"


# ---- install.php: install and the application's events, save ------------------------------------
@app.route("/install", ["GET", "POST"])
def install():
    """The page that Bitrix24 frames until installFinish, and the URL of the application's events.

    In: DOMAIN=acme.bitrix24.ru PROTOCOL=1 LANG=ru APP_SID=... in the query, AUTH_ID=...
    REFRESH_ID=... member_id=... in the body. Out: the form; hidden fields carry the frame's own.
    Or event=ONAPPUPDATE (ONAPPINSTALL) auth[access_token]=...; event=ONAPPUNINSTALL data[CLEAN]=1
    auth[application_token]=..., its only proof. Errors: 403. Differs from PHP: it wants a proof.
    """
    fields, saved = form(), CRest.get_setting_data()
    if "event" not in fields:
        return page("install", fields)
    if fields["event"] in ("ONAPPINSTALL", "ONAPPUPDATE"):
        register(CRest.install_app(CRest.check_token(fields)), public_url(), without_page=True)
    else:
        known = saved.get("application_token", "")
        given = fields.get("auth[application_token]", "")
        proven = known and compare_digest(known.encode(), given.encode())
        require(proven and fields["event"] == "ONAPPUNINSTALL", 403, "WRONG_EVENT: not our portal")
        with locked("settings"):
            CRest.set_setting_data({})
        if fields.get("data[CLEAN]") == "1":
            Queue.clear()
    return {"result": True}


@app.post("/save")
def save():
    """What the form's onsubmit sends: step 1 of the tutorial's three, and what step 2 needs.

    In: the frame's fields as they came, the operator's: api_key=... (empty keeps the saved one).
    Out: {"sender": {"CODE": "fastsms", ...}} for messageservice.sender.add. Errors: 400 key
    refused, 403 see check_token(), 503 no answer. Differs from PHP: the step was left to you.
    """
    fields, url = form(), public_url()
    found, names = CRest.check_token(fields), [field["name"] for field in OPERATOR.FIELDS]
    typed = {name: fields[name].strip() for name in names if fields.get(name, "").strip()}
    trouble, _ = OPERATOR.check({**operator_settings(CRest.get_setting_data()), **typed})
    require(trouble != "key", 400, "OPERATOR_KEY: the operator does not accept it")
    require(not trouble, 503, "OPERATOR_DOWN: the operator could not check it; try again later")
    return {"sender": register(CRest.install_app(found, **typed), url)}


def register(settings, url, without_page=False):
    """Move the sender that is there and the events to url; without a page also add the sender.

    Out: the parameters of sender.add. Only then is url saved: until then /index warns.
    """
    name, events = SENDER_NAME, ("ONAPPUPDATE", "ONAPPUNINSTALL")
    if OPERATOR is Demo:
        name += DEMO
    sender = {"CODE": SENDER_CODE, "TYPE": "SMS", "NAME": name, "DESCRIPTION": SENDER_DESCRIPTION,
              "HANDLER": f"{url}handler?key={settings['handler_key']}"}
    for step in ("delete", "add") if without_page else ("update",):
        must("messageservice.sender." + step, sender)
    bound = mapping(must("event.get", {}), "result").values()
    for event in events:
        must("event.bind", {"event": event, "handler": url + "install"})
    for old in map(mapping, bound):  # at no old address: tokens come along
        if old.get("event") in events and old.get("handler") != url + "install":
            must("event.unbind", old)
    CRest.update_setting_data(public_url=url)
    return sender


def must(method, params):
    """Call Bitrix24, or refuse with its error; fine: there already, not there, no sender.update."""
    answer = CRest.call(method, params)
    error = answer.get("error")
    fine = "already" in str(answer) or error == "ERROR_SENDER_NOT_FOUND"
    old_portal = error == "ERROR_METHOD_NOT_FOUND" and method.endswith("update")
    require("result" in answer or fine or old_portal, 503, f"{error}: no {method}; try again")
    return answer


# ---- index.php: the settings page ---------------------------------------------------------------
@app.route("/", ["GET", "POST"])
@app.route("/index", ["GET", "POST"])
def index():
    """The same form without installFinish, filled with what is saved, for an administrator only.

    In: the frame's fields, as install(). Out: the page, with the key's last four characters, the
    messages waiting, the last pass, and a warning if HANDLER is not at the app's present address.
    """
    fields, state = form(), {}
    try:
        if "AUTH_ID" in fields and not MISSING:
            CRest.check_token(fields)
            settings = CRest.get_setting_data()
            keys = {name: "••••" + (key[-4:] if len(key) > 8 else "")
                    for name, key in operator_settings(settings).items() if key}
            state = {"keys": keys, "waiting": Queue.waiting(), "present": public_url(),
                     "saved": settings.get("public_url"), "last_pass": settings.get("last_pass")}
    except HTTPResponse as refused:  # an employee, somebody else's token: nothing is shown
        response.status, state = refused.status_code, {"refused": refused.body["error"]}
    return page("index", fields, **state)


# ---- handler.php: takes one message -------------------------------------------------------------
@app.post("/handler")
def handler():
    """Bitrix24 asks once and never again: save, answer, then send. ("messageservice.sender.add")

    In: code=fastsms message_id=65575980fa53... message_to=+79990000000 message_body=... type=SMS
    module_id=crm bindings[0][OWNER_ID]=123 auth[application_token]=... (a robot: no auth[...]).
    Out: 200, the message is on disk. Errors: 403 wrong key or token, 400 wrong code or id,
    503 not installed, 500 not saved. Differs from PHP: it only logs.
    """
    fields, settings = check_key()
    known = settings.get("application_token", "")
    given = fields.get("auth[application_token]", known)  # the author's auth: never keep its tokens
    right = not known or compare_digest(known.encode(), given.encode())
    require(right, 403, "WRONG_APPLICATION_TOKEN: " + PRESS_SAVE)
    require(fields.get("code") == SENDER_CODE, 400, f"WRONG_CODE: we serve {SENDER_CODE}")
    usable = re.fullmatch(r"\w[\w.-]{0,127}", fields.get("message_id", ""), re.ASCII)
    require(usable, 400, "WRONG_MESSAGE_ID: letters, digits and _ . - are usable, 128 at most")
    message = {"message_id": fields["message_id"], "member_id": settings["member_id"],
               "operator": SMS_OPERATOR, "code": SENDER_CODE, "received": time.time(),
               "to": fields.get("message_to") or fields.get("properties[phone_number]", ""),
               "text": fields.get("message_body") or fields.get("properties[message_text]", ""),
               "tries": 0, "doubts": 0, "operator_id": "", "sent": 0, "status": ""}
    with suppress(FileExistsError, RuntimeError):  # it waits already; the pool has ended
        Queue.put(message, time.time() + RETRY_AFTER)
        # In a copy of the request's context: a fork keeps there which portal it is for
        POOL.submit(copy_context().run, attempt, send, message["message_id"])
    CRest.set_log("handler", fields=[name for name in sorted(fields) if NAME.fullmatch(name)])
    return {"result": True}


NAME = re.compile(r"[A-Za-z_]+(\[\w{1,20}\])*")  # PHP dumps all; we log what looks like a name
# What becomes of a message: it is done with (its status), waits an hour, or longer each time
DONE = {"sent": "", "got through": "sent", "failed": "failed", "gave up": "failed"}
AN_HOUR = ("limit", "later", "repeated")  # "repeated": sent today already; "repeat": just now
LONGER = ("key", "money", "down", "repeat", "in doubt")
MISTAKE = ("in doubt", "a mistake in the operator's class")  # who knows what it has done
ACCOUNT_TROUBLE = ("key", "money", "limit", "down", "in doubt")  # ends sending for a pass
FINAL = ("delivered", "undelivered", "failed")  # the statuses that an operator may answer


def send(message_id):
    """Hand one waiting message to the operator. Out: "sent", or what is in the way."""
    settings, now, outcome = CRest.get_setting_data(), time.time(), "busy"
    with suppress(BlockingIOError, FileNotFoundError), Queue.claim(message_id, settings) as message:
        keys = operator_settings(settings)
        outcome, answer = hopeless(message) or operate(OPERATOR.send, keys, message)
        if outcome not in (*DONE, *AN_HOUR, *LONGER):
            outcome, answer = MISTAKE
        if outcome in ("repeat", "repeated") and message["doubts"]:
            outcome = "got through"  # the operator knows the message: the first try was accepted
        pause = HOUR if outcome in AN_HOUR else RETRY_AFTER * 2 ** min(message["tries"], 20)
        if outcome in DONE:
            message.update(status=DONE[outcome], to="", text="", sent=now)  # keep little
            pause = 0
        if outcome == "sent":
            message["operator_id"] = str(answer or "?")
        else:
            CRest.set_log("send", message_id=message_id, outcome=outcome, answer=str(answer))
        message["tries"] += 1
        message["doubts"] += outcome == "in doubt"
        Queue.record(message, time.time() + min(pause, HOUR))
    return outcome


def operate(function, *args):
    """Ask an operator. Out: its answer, a pair; MISTAKE if it raises or answers something else."""
    answer = attempt(function, *args)
    return answer if isinstance(answer, tuple) and len(answer) == 2 else MISTAKE


def hopeless(message):
    """Why a message is not sent at all. Out: an outcome and a note, as an operator's, or None."""
    if message["doubts"] > 1 or time.time() - message["received"] > GIVE_UP_UNSENT * HOUR:
        return "gave up", ""
    sendable = re.search(r"\d", message["to"]) and message["text"].strip()
    return None if sendable else ("failed", "no number or no text")


# ---- statuses.php: one pass over the queue ------------------------------------------------------
@app.get("/statuses")
def statuses():
    """One pass, for cron: curl 'https://mydomain.ru/sms/statuses?key=SECRET'. Out: one_pass()"""
    check_key()
    return one_pass()


def one_pass():
    """Send what is unsent, ask the operator about the rest, tell Bitrix24 what is final.

    Out: {"sent": 1, "delivered": 2, "undelivered": 0, "failed": 0, "waiting": 3, "errors": {}}
    Differs from PHP: 100 messages at a time, only final statuses, only one pass at a time.
    Replace me: with several portals, one pass for each.
    """
    settings, over = CRest.get_setting_data(), False
    totals = {**dict.fromkeys((*FINAL, "sent", "waiting"), 0), "errors": {}}
    if not settings:
        return {**totals, "errors": {"portal": "not installed: " + PRESS_SAVE}}
    try:
        with locked("statuses", wait=False):
            for batch in Queue.due(settings, 100):
                if not over:  # what can't be told need not be asked
                    ask([m for m in batch if m["operator_id"] and not m["status"]], totals)
                    over = report([m for m in batch if m["status"]], totals)
                send_unsent([m for m in batch if not (m["operator_id"] or m["status"])], totals)
    except BlockingIOError:
        return {**totals, "note": "another pass is running"}
    happened, totals["waiting"] = any(totals.values()), Queue.waiting()
    if happened or not totals["waiting"]:  # else the page still says what they are waiting for
        CRest.set_log("statuses", **totals)
        CRest.update_setting_data(last_pass={"time": int(time.time()), **totals})
    return totals


def send_unsent(batch, totals):
    """What the pool did not get to, what must be tried again, and what has waited too long."""
    for message in batch:
        if not STOP.is_set() and ("operator" not in totals["errors"] or hopeless(message)):
            outcome = send(message["message_id"])
            totals["sent"] += outcome == "sent"
            if outcome in ACCOUNT_TROUBLE:
                totals["errors"]["operator"] = outcome


def ask(batch, totals):
    """Ask the operator what became of them, in one request; what is too old is undelivered."""
    ids = sorted({message["operator_id"] for message in batch})
    keys = operator_settings(CRest.get_setting_data())
    asks = ids and totals["errors"].get("operator") in (None, "money", "limit")  # asking is free
    trouble, found = operate(OPERATOR.statuses, keys, ids) if asks else ("", {})
    if trouble:
        totals["errors"]["operator"] = trouble if trouble in ACCOUNT_TROUBLE else "down"
    for message in batch:
        age = max(0, time.time() - message["sent"])  # 0: the clock was set back
        old = "undelivered" if age > GIVE_UP_WAITING * HOUR else ""
        status = mapping(found).get(message["operator_id"])
        message["status"] = status if status in FINAL else old
        if not message["status"]:  # the older a message, the less often it is asked about
            Queue.postpone(message, time.time() + min(age / 10, HOUR))


def report(batch, totals):
    """Tell Bitrix24; what it took, or never will, leaves the queue. Out: it takes no more now"""
    over = False
    answer = CRest.call_batch({m["message_id"]: ("messageservice.message.status.update", {
        "CODE": SENDER_CODE, "MESSAGE_ID": m["message_id"], "STATUS": m["status"]}) for m in batch})
    for message in batch:
        name = message["message_id"]
        refused = mapping(answer, "result_error", name).get("error")
        error = code_of(refused or answer.get("error", "lost"))
        if name in answer["result"]:
            totals[message["status"]] += 1
            Queue.remove(message)
        elif error in CRest.NEVER_HEALS or time.time() - message["received"] > KEEP:
            CRest.set_log("dropped", message_id=name, error=error)
            Queue.remove(message)
        else:  # the status is kept: the operator is not asked again
            heals = error in CRest.SAVE_HEALS
            totals["errors"]["portal"] = f"{error}: {PRESS_SAVE}" if heals else error
            over = over or not refused or heals or error in CRest.LIMITS  # it concerns them all
            Queue.record(message, time.time() + RETRY_AFTER)
    return over


# ---- checkserver.php ----------------------------------------------------------------------------
@app.get("/checkserver")
def checkserver():
    """Can this server run the application? Out: {"result": []}, or what to mend, in words."""
    if CRest.get_setting_data():
        check_key()
    return {"result": CRest.check_server()}


# ---- Requests and answers -----------------------------------------------------------------------
def form():
    """The request's query and form as {name: text}; brackets stay in the names: auth[domain].

    Differs from PHP: UTF-8 is decoded here, as bottle's request.forms.get() returns mojibake.
    """
    length, body = request.environ.get("CONTENT_LENGTH") or "0", b""
    small = re.fullmatch("[0-9]{1,6}", length) and int(length) <= MAX_BODY and not request.chunked
    require(small, 413, "TOO_LARGE: 100 KB at most, with a Content-Length")
    with suppress(OSError):  # silent for 30 seconds
        body = request.body.read()
    require(len(body) == int(length), 400, "INCOMPLETE: shorter than its Content-Length")
    return dict(parse_qsl(f"{request.query_string}&{body.decode(errors='replace')}", True))


def page(name, fields, **state):
    """The frame's own tokens go back in this very page, which only its portal may frame."""
    scheme = "http" if fields.get("PROTOCOL") == "0" else "https"
    host = re.fullmatch(r"[\w.-]+(:\d+)?", fields.get("DOMAIN", ""), re.ASCII)
    portal = f"{scheme}://{host[0]}" if host else "'none'"
    response.set_header("Content-Security-Policy", "frame-ancestors " + portal)
    return template(name if "AUTH_ID" in fields else "outside", fields=fields, missing=MISSING,
                    ru=fields.get("LANG") == "ru", operator=OPERATOR, bx24_js=BX24_JS_URL,
                    demo=OPERATOR is Demo, template_lookup=VIEWS, **state)


SAFE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
app.add_hook("after_request", lambda: response.headers.update(SAFE))
app.default_error_handler = lambda error: HTTPResponse(  # no path and no traceback in an answer
    json.dumps({"error": f"HTTP_{error.status_code}", "error_description": error.status}),
    error.status, {"Content-Type": "application/json", **SAFE})


def require(condition, status, error):
    """Go on, or refuse as Bitrix24 does. In: the HTTP status, "CODE: what to do"."""
    if not condition:
        code, _, words = error.partition(": ")
        raise HTTPResponse({"error": code, "error_description": words}, status)


def check_key():
    """The secret in our own URLs. Out: the request's fields, the settings."""
    fields, settings = form(), CRest.get_setting_data()
    require("handler_key" in settings, 503, "NOT_INSTALLED: " + PRESS_SAVE)
    right = compare_digest(settings["handler_key"].encode(), fields.get("key", "").encode())
    require(right, 403, "WRONG_KEY: use the address that Save registered, with its ?key=SECRET")
    return fields, settings


def public_url():
    """Where the portal reaches us. Never from X-Forwarded-Host: anybody can write that."""
    host = request.environ.get("HTTP_HOST", "")
    scheme = "http" if LOOPBACK.match(f"http://{host}") else "https"
    url = (PUBLIC_URL or f"{scheme}://{host}").rstrip("/") + "/"
    require(SECURE.match(url), 400, "WRONG_HOST: set PUBLIC_URL to an address with https://")
    return url


# ---- crest.php: the network, class CRest --------------------------------------------------------
LOOPBACK = re.compile(r"http://(localhost|127(\.\d{1,3}){3})(:\d+)?(/|$)")
SECURE = re.compile(r"https://\w|" + LOOPBACK.pattern)
# A renamed portal stays in its zone, and so do its tokens: ".bitrix24.ru", or this machine
ZONE = re.compile(r"https://[\w-]+(\.[\w-]+\.[\w.-]+)(:\d+)?/|" + LOOPBACK.pattern)
HTTP = requests.Session()  # connects with the first request; tries again when nothing was sent
for one in HTTP.adapters.values():
    one.max_retries = urllib3.Retry(None, connect=2, read=False, other=False, backoff_factor=0.3)
HTTP.cookies.set_cookie = lambda *_: None  # one user's session must not meet another's token
HTTP.get_redirect_target = lambda answer: None  # allow_redirects=False would still read their body


def post(url, fields=None, method="POST", **more):
    """The one place that reaches the network. Out: HTTP status, JSON object; or 0, {"error": ...}:

    "unreachable": nothing went out; "no_answer": silence, a 504, a success without JSON, who knows?
    In: a form; or, in more, what requests knows: json={...}, headers={...}, auth=(user, password).
    """
    if not SECURE.match(url):
        return 0, {"error": "unreachable"}
    answer = None
    try:
        got = HTTP.request(method, url, data=fields, timeout=TIMEOUT, stream=True, **more)
        with got, suppress(ValueError, RecursionError):  # HTML, or nothing that JSON knows
            answer = json.loads(got.raw.read(MAX_ANSWER, decode_content=True))
    except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError):
        unsent = "in connect\n" in traceback.format_exc()  # raised in there: DNS, TCP, proxy, TLS
        return 0, {"error": "unreachable" if unsent else "no_answer"}
    status, known = got.status_code, isinstance(answer, dict)
    if status == 504 or (status < 300 and not known):  # it may have got through
        return 0, {"error": "no_answer"}
    if 300 <= status < 400 or not known:
        answer = {"error": f"HTTP_{status}", "location": got.headers.get("Location", "")}
    if "error" in answer:
        answer["error"] = code_of(answer["error"])
    return status, answer


def code_of(error):
    """An error's code; whatever else somebody sends in its place stays out of logs and pages."""
    return str(error) if re.fullmatch(r"[A-Za-z_]{1,40}|HTTP_\d+", str(error)) else "no_code"


def mapping(answer, *names):
    """answer[name][name] as a dict, or {}; a list is {"0": ...}, because PHP writes {} as []."""
    for name in names:
        answer = mapping(answer).get(name)
    if isinstance(answer, (list, tuple)):
        answer = {str(number): item for number, item in enumerate(answer)}
    return answer if isinstance(answer, dict) else {}


def http_build_query(value, name=""):
    """PHP's: true → 1, false → 0, null and empty lists vanish, a[b][0]=v. Out: [(name, text)]"""
    if isinstance(value, (dict, list, tuple)):
        return [pair for key, item in mapping(value).items()
                for pair in http_build_query(item, f"{name}[{key}]" if name else key)]
    value = int(value) if isinstance(value, bool) else value
    return [] if value is None else [(name, value)]


class CRest:
    """CRest 1.36 for one portal; plain functions in a class, as PHP's static methods.

    Differs from PHP: tokens are proven before they are saved, and changed under a lock.
    """

    FRAME = (("access_token", "AUTH_ID"), ("refresh_token", "REFRESH_ID"),
             ("application_token", "APPLICATION_TOKEN"))  # (ours and an event's, a frame's)
    LIMITS = ("QUERY_LIMIT_EXCEEDED", "OPERATION_TIME_LIMIT", "insufficient_scope")  # for all
    NEVER_HEALS = ("ERROR_MESSAGE_NOT_FOUND", "ERROR_MESSAGE_STATUS_INCORRECT")
    SAVE_HEALS = ("expired_token", "invalid_token", "NO_AUTH_FOUND", "invalid_grant",
                  "invalid_client", "ACCESS_DENIED", "user_access_error", "no_install_app")

    def get_setting_data():
        """Replace me: read the settings from your store. Out: {} before the installation."""
        with suppress(FileNotFoundError, NotADirectoryError):
            file = SETTINGS.stat()
            return dict(settings_file(file.st_ino, file.st_mtime_ns))
        return {}

    def set_setting_data(settings):
        """Replace me: write them to your store. In: {} when the application is uninstalled."""
        write(SETTINGS, settings, time.time())

    def update_setting_data(**news):
        """Change these, under the lock; none if the application was uninstalled meanwhile."""
        with locked("settings"):
            settings = CRest.get_setting_data()
            CRest.set_setting_data(settings and {**settings, **news})

    def check_token(fields):
        """Believe the OAuth server about a token, and the portal about its administrator.

        In: a frame's or an event's fields, all of which can be forged. Out: what to save.
        Errors: 403 not ours, another portal, no administrator; 503. ("app.info", "profile")
        """
        require(not MISSING, 503, f"NO_CLIENT_ID: set {' and '.join(MISSING)}, then restart")
        found = {name: fields.get(f"auth[{name}]" if "event" in fields else field, "")
                 for name, field in CRest.FRAME}
        status, answer = post(OAUTH_URL + "/rest/app.info", {"auth": found["access_token"]})
        answered = "result" in answer or status in (400, 401, 403)
        require(answered, 503, "OAUTH_SERVER: the OAuth server did not answer; try again")
        ours = mapping(answer, "result").get("client_id") == CLIENT_ID
        require(ours, 403, "WRONG_TOKEN: not a token of this application; reload the page")
        install = mapping(answer, "result", "install")
        found.update({name: str(install.get(name)) for name in ("member_id", "client_endpoint")})
        CRest.check_portal(found, CRest.get_setting_data())
        answer = CRest.call_curl(found, "profile", {})
        code = "ACCESS_DENIED" if answer.get("error") == "ACCESS_DENIED" else "PORTAL"
        profile = mapping(answer, "result")
        require(profile, 503, f"{code}: Bitrix24 did not let the application in; try again")
        require(profile.get("ADMIN") is True, 403, "NOT_ADMIN: only an administrator may do this")
        return found

    def check_portal(found, saved):  # the first portal that is installed is the only one
        same = saved.get("member_id", found["member_id"]) == found["member_id"]
        require(same, 403, "OTHER_PORTAL: to move to another portal, delete settings.json")

    def install_app(found, **typed):
        """Save what is proven and typed; what is not given stays, and so does the handler_key."""
        with locked("settings"):
            saved = CRest.get_setting_data()
            CRest.check_portal(found, saved)  # again, under the lock: two may install at once
            settings = {"handler_key": token_urlsafe(24), **saved,
                        **{name: value for name, value in found.items() if value},
                        SMS_OPERATOR: {**saved.get(SMS_OPERATOR, {}), **typed}}
            CRest.set_setting_data(settings)
        return settings

    def call(method, params):
        """One REST method with the saved tokens. Out: {"result": ...} or {"error": "CODE"}"""
        settings = CRest.get_setting_data()
        answer = CRest.call_curl(settings, method, params)
        if answer.get("error") == "expired_token":  # never before, or the app may get blocked
            answer = CRest.call_curl(CRest.get_new_auth(settings), method, params)
        return answer

    def call_curl(settings, method, params):
        """A busy portal (503) is waited for; a renamed one (302) followed, the POST intact."""
        if "access_token" not in settings:  # not installed, or not renewed
            return {"error": settings.get("error", "no_install_app")}
        fields = http_build_query({"auth": settings["access_token"], **params})
        url, hops = f"{settings['client_endpoint']}{method}.json", 0
        for pause in PAUSES_503:
            status, answer = post(url, fields)
            here, there = ZONE.match(url), status == 302 and ZONE.match(answer["location"])
            if here and there and here[1] == there[1] and hops < 2:
                url, hops = answer["location"], hops + 1
            elif status != 503 or STOP.wait(pause):
                break
        if hops and "result" in answer:
            CRest.update_setting_data(client_endpoint=url.rpartition(method)[0])
        return answer

    def get_new_auth(expired):
        """Out: settings with a new token, whoever got it, or {"error": "CODE"} ("OAuth 2.0")"""
        with locked("settings"):
            settings = CRest.get_setting_data()
            if settings.get("access_token") != expired["access_token"]:  # somebody was faster
                return settings
            CRest.set_setting_data(settings)  # a full disk raises before the old ones are spent
            status, answer = post(OAUTH_URL + "/oauth/token/", {
                "grant_type": "refresh_token", "refresh_token": settings["refresh_token"],
                "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET})
            tokens = {name: answer.get(name) for name in ("access_token", "refresh_token")}
            if not all(isinstance(token, str) for token in tokens.values()):
                code = answer.get("error", "oauth_server")
                dead = status in (400, 401, 403) and code not in CRest.SAVE_HEALS
                return {"error": "invalid_grant" if dead else code}
            CRest.set_setting_data({**settings, **tokens})
        return {**settings, **tokens}

    def call_batch(commands, halt=0):
        """In: {name: (method, params)}, 50 a request. Out: result, result_error; error ends it."""
        whole = {"result": {}, "result_error": {}}
        queries = [(name, f"{method}?{urlencode(http_build_query(params))}")
                   for name, (method, params) in commands.items()]
        for start in range(0, len(queries), 50):
            cmd = dict(queries[start:start + 50])
            answer = CRest.call("batch", {"halt": halt, "cmd": cmd})
            for kind in ("result", "result_error"):
                whole[kind].update(mapping(answer, "result", kind))
            if "error" in answer:
                return {**whole, "error": answer["error"]}
        return whole

    def set_log(kind, **data):
        """Replace me. In: names, ids and codes; never a text, a token, a full number."""
        if not BLOCK_LOG:
            now = time.strftime("%F %T")
            line = json.dumps({"time": now, "type": kind, **data}) + "\n"
            with suppress(OSError):  # on a full disk what is saved stays saved, log or not
                log_file(now).write(line.encode())

    def check_server():
        """What to mend before the application can run here: no paths, no versions."""
        mend = [f"Set {name}, from the application's card in Bitrix24." for name in MISSING]
        urls = {"PUBLIC_URL": PUBLIC_URL, "OAUTH_URL": OAUTH_URL, "SMSRU_URL": SMSRU_URL}
        mend += [f"{name} must begin with https://" for name, url in urls.items()
                 if url and not SECURE.match(url)]
        path = QUEUE / f"check-{token_hex(8)}"
        try:
            CRest.get_setting_data()
            write(path, mend, time.time(), os.link)  # the queue needs hard links
            mend = json.loads(path.read_text("utf-8"))
            path.unlink()
        except OSError as error:
            mend.append(f"Let this user write to DATA_DIR: {error.strerror}.")
        except ValueError:
            mend.append("settings.json is damaged: delete it, then install again.")
        return mend


# ---- data/: whole files, locks, the queue -------------------------------------------------------
os.umask(0o077)  # files 0600, folders 0700
for folder in (DATA_DIR, QUEUE, LOGS_DIR):
    with suppress(OSError):  # checkserver tells; a volume that is not ours keeps its mode
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may come from git, readable by all


def write(path, data, mtime, put=os.replace):
    """Written aside, flushed, put in place, folder flushed: after a crash, whole or not there."""
    aside = f"{path}.{token_hex(8)}.tmp"
    whole = json.dumps(data, ensure_ascii=False).encode(errors="replace")
    try:
        with open(aside, "xb") as file:
            file.write(whole)
            file.flush()  # a full disk raises here
            os.utime(file.fileno(), (mtime, mtime))
            os.fsync(file.fileno())
        put(aside, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@lru_cache(maxsize=1)
def settings_file(inode, mtime):
    """For the cache: read again when it is another file, as after each write()."""
    return json.loads(SETTINGS.read_bytes())


@lru_cache(maxsize=1)
def log_file(now):
    """One a day, opened once a second; a line is one write, whoever else writes."""
    return open(LOGS_DIR / f"{now[:10]}.log", "ab", buffering=0)


@contextmanager
def locked(name, wait=True):
    """Replace me: a lock between threads and processes that dies with its owner.

    In: "settings" or "statuses". Errors: without wait BlockingIOError, if somebody else has it.
    """
    with open(DATA_DIR / f"{name}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


class Queue:
    """Replace me: the waiting messages, one JSON file each, in the manner of Maildir.

    A file's mtime says when it is due, so that a pass opens only these. While it is being sent,
    the file is locked and the mtime is 0 or 1, the doubts so far: when the sender is killed, the
    next one finds that mtime without a lock, and knows that the operator may have the message.
    """

    def path(message_id):
        return f"{QUEUE}/{message_id}.json"

    def put(message, due):
        """On disk when this returns. FileExistsError: a message of this id waits already."""
        write(Queue.path(message["message_id"]), message, due, os.link)

    def read(path, settings):
        """Out: the message, or None if it is gone or not ours. What can't be read is set aside."""
        try:
            with open(path, "r+b", buffering=0) as file:  # what can't be written is no use
                message = json.loads(file.read())
            "".join([message[name] for name in ("to", "text", "operator_id", "status")])  # raises
            sum(message[name] for name in ("received", "sent", "tries", "doubts"))
            owner = [message[name] for name in ("member_id", "operator", "code")]
            ours = owner == [settings.get("member_id"), SMS_OPERATOR, SENDER_CODE]
            if not ours and time.time() - message["received"] > KEEP:
                raise LookupError("nobody wants it any more")
            return message if ours and Queue.path(message["message_id"]) == path else None
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, RecursionError, IsADirectoryError,
                PermissionError):
            CRest.set_log("unreadable", message_id=Path(path).stem)
            os.rename(path, Path(path).with_suffix(".unreadable"))

    @contextmanager
    def claim(message_id, settings):
        """Out: the message, ours alone. BlockingIOError, FileNotFoundError: it is not to be sent"""
        path = Queue.path(message_id)
        with open(path, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = os.fstat(file.fileno())
            message = os.path.samestat(os.stat(path), state) and Queue.read(path, settings)
            if not message or message["operator_id"] or message["status"]:  # replaced, or done
                raise BlockingIOError("somebody else had it")
            if state.st_mtime in (0, 1):  # its sender was killed
                message["doubts"] = int(state.st_mtime) + 1
                CRest.set_log("in doubt", message_id=message_id)
            os.utime(file.fileno(), (0, min(message["doubts"], 1)))  # (atime, mtime)
            os.fsync(file.fileno())
            yield message

    def due(settings, size):
        """Yield the due messages, the longest waiting first, in lists; sweep what is left over."""
        found, now = [], time.time()
        for file in (*os.scandir(QUEUE), *DATA_DIR.glob("*.tmp")):
            with suppress(OSError):  # it is gone, or a folder
                mtime = os.lstat(file).st_mtime
                if file.name.endswith(".json"):
                    if not now < mtime <= now + HOUR:  # farther off than any pause: a clock was set
                        found.append((mtime, f"{QUEUE}/{file.name}"))
                elif now - mtime > (24 * HOUR if file.name.endswith(".tmp") else KEEP):
                    os.unlink(file)
        found.sort()
        for start in range(0, len(found), size):
            if STOP.is_set():
                return
            messages = [Queue.read(path, settings) for _, path in found[start:start + size]]
            yield [message for message in messages if message]

    def record(message, due):
        """Replace the message if it is still there: what clear() took must not come back."""
        with suppress(FileNotFoundError):
            write(Queue.path(message["message_id"]), message, due, lambda aside, path: (
                os.path.exists(path) and os.replace(aside, path)))

    def postpone(message, due):
        with suppress(FileNotFoundError):
            os.utime(Queue.path(message["message_id"]), (due, due))

    def remove(message):
        Path(Queue.path(message["message_id"])).unlink(missing_ok=True)

    def waiting():
        return sum(name.endswith(".json") for name in os.listdir(QUEUE))

    def clear():
        """Until nothing is left: a record() may be under way."""
        while left := list(QUEUE.iterdir()):
            for path in left:
                path.unlink(missing_ok=True)


# ---- Operators: Demo, SmsRu ---------------------------------------------------------------------
class Demo:
    """Replace me: an operator. Nothing is sent; numbers that end in 01, 02, 03 meet trouble.

    Plain functions without self; they raise nothing. Each answers ("", result), or what is in the
    way and a note for the log: "key", "money", "limit", "down" concern the account; "failed" or
    "later" one message; "in doubt": it may have it; "repeat": it says that it had it before.
    """

    FIELDS = ({"name": "api_key", "en": ("API key", "Any key will do: nothing is sent."),
               "ru": ("Ключ API", "Подойдёт любой: ничего не отправляется.")},)

    def check(settings):
        return ("" if settings["api_key"] else "key"), ""

    def send(settings, message):
        """Out: ("sent", the operator's id)"""
        end = re.sub(r"\D", "", message["to"])[-2:]
        if end == "02":
            return "failed", "refused"
        if end == "03" and message["tries"] < 2:
            return "down", ""
        return "sent", f"{time.time()}-{end}"

    def statuses(settings, ids):
        """Out: ("", {id: "delivered" | "undelivered" | "failed"}), without those under way."""
        old = [i for i in ids if time.time() - float(i.partition("-")[0]) > 1]
        return "", {i: "undelivered" if i.endswith("-01") else "delivered" for i in old}


# SMS.ru's codes: what became of a message ("": it is under way), what is in the way of sending it
SMSRU = {"delivered": (103, 110), "undelivered": (104, 105, 106, 107, 108, 150),
         "": (-1, 100, 101, 102), "key": (200, 300, 301, 302), "money": (201,), "limit": (206,),
         "down": (220, 500), "later": (230, 233), "repeat": (231,), "repeated": (232,),
         "failed": (202, 203, 205, 207, 209, 215, 216, 217, 204, 214, 221, 550)}
SMSRU_CODES = {str(code): outcome for outcome, codes in SMSRU.items() for code in codes}


class SmsRu:
    """SMS.ru ("API: sending", "API: status"): one number a request, up to 100 ids a question."""

    FIELDS = ({"name": "api_key", "en": ("API key", "api_id, in your SMS.ru account's settings"),
               "ru": ("Ключ API", "api_id из настроек личного кабинета SMS.ru")},)

    def request(path, settings, unsure="down", **fields):  # Out: ("", its JSON) or outcome()
        status, answer = post(SMSRU_URL + path, dict(fields, api_id=settings["api_key"], json=1))
        if answer.get("status") == "OK":
            return "", answer
        lost = answer.get("error") == "no_answer" or status == 200  # it may have got through
        return SmsRu.outcome(answer, unsure if lost else "down")

    def outcome(entry, unsure="down"):
        """What the code means, or unsure if SMS.ru did not write this; a note for the log."""
        code, known = str(entry.get("status_code"))[:4], entry.get("status") in ("OK", "ERROR")
        words = entry.get("status_text") if code in ("204", "214", "221", "550") else ""
        note = f"{code} " + re.sub(r"\S*\d\S*|\S{25,}", "…", str(words))[:100]  # no number, no key
        return (SMSRU_CODES.get(code, "failed") if known else unsure), note

    def check(settings):
        return SmsRu.request("/auth/check", settings)

    def send(settings, message):
        to = re.sub(r"^8(?=\d{10}$)", "7", re.sub(r"\D", "", message["to"]))  # 8 925 is +7 925
        trouble, answer = SmsRu.request("/sms/send", settings, "in doubt", to=to,
                                        msg=message["text"], test=SMSRU_TEST or None)
        if trouble:
            return trouble, answer
        entry = mapping(next(iter(mapping(answer, "sms").values()), {}))  # the only one, any key
        sent = entry.get("status") == "OK"
        return ("sent", entry.get("sms_id")) if sent else SmsRu.outcome(entry, "in doubt")

    def statuses(settings, ids):
        trouble, answer = SmsRu.request("/sms/status", settings, sms_id=",".join(ids))
        told = {i: mapping(answer, "sms", i) for i in ids}
        return trouble, {i: SmsRu.outcome(e)[0] for i, e in told.items() if e.get("status") == "OK"}


OPERATORS = {"demo": Demo, "smsru": SmsRu}
OPERATOR = OPERATORS.get(SMS_OPERATOR) or sys.exit(f"SMS_OPERATOR is one of {', '.join(OPERATORS)}")


def operator_settings(settings):  # every field as text; SMS_API_KEY until a key is saved
    empty = {field["name"]: "" for field in OPERATOR.FIELDS}
    return {**empty, "api_key": SMS_API_KEY, **settings.get(SMS_OPERATOR, {})}


# ---- Run: python app.py [statuses | checkserver] ------------------------------------------------
POOL = ThreadPoolExecutor(8)  # its threads start with the first message


class Server(WSGIServer, ThreadingHTTPServer):  # its threads do not hold up the end
    request_queue_size = 1024  # Bitrix24 may call a thousand times at once

    def handle_error(self, *_):
        """The other side went away, or kept silent for 30 seconds."""


class Connection(WSGIRequestHandler):
    timeout = 30  # seconds of silence
    wbufsize = -1  # an answer leaves in one piece

    def log_message(self, *words):  # the path, the status; not the query: it holds the secret
        path = getattr(self, "path", "").partition("?")[0]
        sys.stderr.write(f"{time.strftime('%F %T')} {path!r} {words[-2]}\n")


def attempt(work, *args):
    """Where nobody waits for an answer: what goes wrong is in the output. Out: None then."""
    try:
        return work(*args)
    except Exception:
        logging.getLogger("app").exception(work)


def passes():
    """In a thread of its own, so that a burst in POOL does not hold it up."""
    while not STOP.wait(STATUSES_EVERY or None):  # None: no pass, only the end
        attempt(one_pass)


def main(command=""):
    if command not in ("", "statuses", "checkserver"):
        sys.exit("Usage: python app.py [statuses | checkserver]")
    if command == "statuses":
        if os.path.exists(SETTINGS) and SETTINGS.stat().st_uid != os.geteuid():
            sys.exit("settings.json belongs to another user: run this as the one who runs the app")
        totals = one_pass()
        print(json.dumps(totals))
        sys.exit(bool(totals["errors"]))
    mend = CRest.check_server()
    print("\n".join(mend) or "This server can run the application.")
    if command == "checkserver":
        sys.exit(bool(mend))
    note = DEMO if OPERATOR is Demo else ""
    print(f"http://{HOST}:{PORT}/ with the operator {SMS_OPERATOR}{note}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=passes).start()
    try:
        app.run(host=HOST, port=PORT, server_class=Server, handler_class=Connection, quiet=True)
    except OSError as error:
        sys.exit(f"Can't listen on {HOST}:{PORT}: {error.strerror}. Set HOST or PORT.")
    finally:
        STOP.set()
        POOL.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
