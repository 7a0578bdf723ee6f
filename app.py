"""A Bitrix24 message provider in one file: the tutorial's PHP scripts, 1:1 in Python.

Bitrix24 asks us to send a text message. We save it, answer, hand it to an SMS operator,
ask the operator what became of it and report that back.

    settings.php     the environment            "Settings" below
    install.php      POST /install              install()     the form; application events
                     POST /save                 save()        what its onsubmit sends
    index.php        POST /index, POST /        index()       the settings page
    handler.php      POST /handler?key=SECRET   handler()     takes one message
    statuses.php     GET /statuses?key=SECRET   statuses()    one pass over the queue
    checkserver.php  GET /checkserver           checkserver() can this server run it?
    crest.php                                   class CRest   calls it, renews tokens
    (some queue)     data/queue/                class Queue   new → sending → sent | failed
    (operator's API)                            class Demo, class SmsRu

"Replace me" marks what a fork replaces; "Differs from PHP", what is not as in PHP, and why.
A name in brackets and quotes, ("Events"), is a page of the documentation that a fact is from.
Left out on purpose, but in tests/forks/: several portals, a database, pushed receipts.
"""
import fcntl
import json
import logging
import os
import re
import signal
import ssl
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import compare_digest, token_hex, token_urlsafe
from socketserver import ThreadingMixIn
from urllib.parse import parse_qsl, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import requests
import urllib3
from bottle import TEMPLATE_PATH, Bottle, HTTPResponse, request, response, template


# ---- Settings (settings.php): the environment, then constants with their units ---------
def env(name, default="", kind=str):
    """A variable of the environment, or its default if it is not set or empty."""
    try:
        return kind(os.environ.get(name) or default)
    except ValueError:
        sys.exit(f"{name} must be a number, such as {default}")


HERE = Path(__file__).resolve().parent
TEMPLATE_PATH.insert(0, str(HERE / "views"))
CLIENT_ID, CLIENT_SECRET = env("C_REST_CLIENT_ID"), env("C_REST_CLIENT_SECRET")
MISSING = [name for name in ("C_REST_CLIENT_ID", "C_REST_CLIENT_SECRET") if not env(name)]
DATA_DIR = env("DATA_DIR", HERE / "data", Path)  # it and LOGS_DIR become 0700
LOGS_DIR, BLOCK_LOG = env("C_REST_LOGS_DIR", DATA_DIR / "logs", Path), env("C_REST_BLOCK_LOG")
OAUTH_URL = env("OAUTH_URL", "https://oauth.bitrix24.tech").rstrip("/")
BX24_JS_URL = env("BX24_JS_URL", "https://api.bitrix24.com/api/v1/")
PUBLIC_URL = env("PUBLIC_URL")  # with its path: https://mydomain.ru/sms/
HOST, PORT = env("HOST", "127.0.0.1"), env("PORT", 8080, int)
STATUSES_EVERY = env("STATUSES_EVERY", 60, float)  # seconds between own passes; 0: cron
RETRY_AFTER = env("RETRY_AFTER", 60, float)  # seconds before anything is tried again
GIVE_UP_UNSENT = env("GIVE_UP_UNSENT", 24, float)  # hours, then the message is "failed"
GIVE_UP_WAITING = env("GIVE_UP_WAITING", 72, float)  # hours, then it is "undelivered"
SMS_OPERATOR = env("SMS_OPERATOR", "demo")  # or "smsru"
SMS_API_KEY = env("SMS_API_KEY")  # when there is no page to ask for it
SMSRU_URL, SMSRU_TEST = env("SMSRU_URL", "https://sms.ru").rstrip("/"), env("SMSRU_TEST")

# Replace me: the sender as users see it in Bitrix24 (the pages' texts are in views/)
SENDER_CODE = env("SENDER_CODE", "fastsms")
SENDER_NAME = env("SENDER_NAME", "Provider FastSms")
SENDER_DESCRIPTION = "Description sms provider"
DEMO_NOTE = " (demo: nothing is sent)"  # behind the name, as long as the operator is Demo

HOUR, KEEP = 3600, 14 * 24 * 3600  # seconds; no message is kept longer than KEEP
TIMEOUT = (5, 30)  # seconds to connect, seconds of silence
PAUSES_503 = (0.5, 1, 2, 4, 8, 0)  # seconds; Bitrix24 takes 2 requests a second
FINAL = ("sent", "delivered", "undelivered", "failed")  # "sent": more will never be known
PRESS_SAVE = "an administrator must open the application and press Save"
STOP = threading.Event()  # set by SIGTERM and Ctrl-C
app = application = Bottle()  # WSGI servers look for "application"


# ---- install.php: install and the application's events, save, register -----------------
@app.route("/install", ["GET", "POST"])
def install():
    """The page that Bitrix24 frames until installFinish; the application's events.

    In: DOMAIN=acme.bitrix24.ru PROTOCOL=1 LANG=ru APP_SID=... in the query, AUTH_ID=...
    REFRESH_ID=... APPLICATION_TOKEN=... in the body. Out: the form, these fields hidden in it.
    Or event=ONAPPINSTALL, ONAPPUPDATE auth[access_token]=...; or event=ONAPPUNINSTALL
    data[CLEAN]=1 auth[application_token]=..., its only proof. Errors: as save().
    Differs from PHP: nothing changes without a proof. ("Events")
    """
    fields = form()
    if "event" not in fields:
        return page("install", fields)
    if fields["event"] in ("ONAPPINSTALL", "ONAPPUPDATE"):
        url, proven = public_url(), crest.check_token(fields)
        register(crest.install_app(proven), url, from_page=False)
        return {"result": True}
    known = crest.get_setting_data().get("application_token", "")
    given = fields.get("auth[application_token]", "")
    right = known and compare_digest(known.encode(), given.encode())
    require(right and fields["event"] == "ONAPPUNINSTALL", 403, "WRONG_EVENT: not our portal")
    with locked("settings"):
        crest.set_setting_data({})
    if fields.get("data[CLEAN]") == "1":
        Queue.clear()
    return {"result": True}


@app.post("/save")
def save():
    """What the form's onsubmit sends: step 1 of the tutorial's three; what step 2 needs.

    In: the frame's fields as they came, the operator's: api_key=... (empty: the saved one).
    Out: {"sender": {"CODE": "fastsms", ...}}, parameters of messageservice.sender.add.
    Errors: 400 key refused; 403 not our token, no administrator; 503 somebody is silent.
    Differs from PHP: there the step was left to you.
    """
    fields, url = form(), public_url()
    proven, saved = crest.check_token(fields), operator_settings()
    typed = {name: fields[name].strip() for name in saved if fields.get(name, "").strip()}
    trouble, _ = ask_operator(OPERATOR.check, {**saved, **typed})
    require(trouble != "key", 400, "OPERATOR_KEY: the operator does not accept this")
    require(not trouble, 503, "OPERATOR_DOWN: the operator could not check it; try later")
    sender = register(crest.install_app(proven, **typed), url)
    Queue.hurry()  # what waits for another key is tried at once
    wake()
    return {"sender": sender}


def register(settings, url, from_page=True):
    """Bind the events at url, move the sender there, then let the former address go.

    Out: the parameters with which the page then calls sender.add, whose "already installed"
    is fine; without a page we do. url is saved last: until then /index warns, and Save
    repairs it. ("messageservice.sender.add")
    """
    sender = {"CODE": SENDER_CODE, "TYPE": "SMS", "DESCRIPTION": SENDER_DESCRIPTION,
              "NAME": SENDER_NAME + DEMO_NOTE if OPERATOR is Demo else SENDER_NAME,
              "HANDLER": f"{url}handler?key={settings['handler_key']}"}
    former = settings.get("public_url")
    events = ("ONAPPUPDATE", "ONAPPUNINSTALL")  # ONAPPINSTALL goes to the card's own path
    for event in events:
        must("event.bind", {"event": event, "handler": url + "install"}, harmless="already")
    answer = must("messageservice.sender.update", sender, harmless="ERROR_SENDER_NOT_FOUND")
    if "error" in answer and not from_page:
        must("messageservice.sender.add", sender)
    if former and former != url:
        for event in events:
            must("event.unbind", {"event": event, "handler": former + "install"})
    crest.update_setting_data(public_url=url)
    return sender


def must(method, params, harmless=None):
    """Call Bitrix24. Out: its answer, at most with this harmless error. Errors: 503."""
    answer = crest.call(method, params)
    error = answer.get("error")
    if error and not (harmless and harmless in str(answer)):
        require(False, 503, f"{error}: no {method}; try again")
    return answer


# ---- index.php: the settings page ------------------------------------------------------
@app.route("/", ["GET", "POST"])
@app.route("/index", ["GET", "POST"])
def index():
    """The same form without installFinish, filled with what is saved, for administrators.

    In: the frame's fields, as install(). Out: the page: the operator's fields (a secret is
    masked), the messages waiting, the last pass, and a warning if HANDLER is not at the
    address that this page was opened at.
    """
    fields, state = form(), {}
    try:
        if "AUTH_ID" in fields and not MISSING:
            crest.check_token(fields)
            settings = crest.get_setting_data()
            state = {"values": operator_settings(), "waiting": Queue.waiting(),
                     "last_pass": settings.get("last_pass"),
                     "present": public_url(), "saved": settings.get("public_url")}
    except HTTPResponse as refused:  # an employee, a stranger: nothing is shown
        response.status, state = refused.status_code, {"refused": refused.body["error"]}
    return page("index", fields, **state)


# ---- handler.php: takes one message, hands it to the operator --------------------------
@app.post("/handler")
def handler():
    """Bitrix24 asks once and never again: save, answer, then send.

    In: code=fastsms message_id=65575980fa53... message_to=+79990000000 message_body=...
    type=SMS module_id=crm bindings[0][OWNER_ID]=123 auth[domain]=... (a robot: no auth).
    Out: 200, the message is on disk. Errors: 403 wrong key, 400 wrong code or id, 500 not
    saved, 503 not installed. Differs from PHP: it only logs. ("sender.add")
    """
    fields = check_key()
    require(fields.get("code") == SENDER_CODE, 400, f"WRONG_CODE: we serve {SENDER_CODE}")
    message_id = fields.get("message_id", "")
    usable = re.fullmatch(r"\w[\w.-]{0,127}", message_id, re.ASCII)  # as a file's name
    require(usable, 400, "WRONG_MESSAGE_ID: letters, digits, _ . - please, 128 at most")
    Queue.put({
        "message_id": message_id,  # an operator may take it as idempotency key
        "to": fields.get("message_to", ""),  # as somebody typed it: +7 (925) 507-06-02
        "text": fields.get("message_body", ""),  # both empty once the operator has them
        "received": time.time(),
        "in_doubt": False,  # was tried, and nobody knows whether the operator has it
        "operator_id": "", "sent_at": 0,  # the operator's id; when it was handed over
        "status": "",  # what Bitrix24 is still to be told, one of FINAL
    })
    crest.set_log("handler", message_id=message_id)
    wake()
    return {"result": True}


def wake():
    """Send in the background; while the app ends, a message waits for its next start."""
    if not WOKEN.is_set():  # else a round is to begin, and will find this one, too
        WOKEN.set()
        with suppress(RuntimeError):
            BACKGROUND.submit(attempt, send_new)


# ---- statuses.php: one pass over the queue ---------------------------------------------
@app.get("/statuses")
def statuses():
    """One pass, for cron: curl https://mydomain.ru/sms/statuses?key=SECRET"""
    check_key()
    return one_pass()


def one_pass():
    """Tell Bitrix24 what is final, ask the operator about the rest, send what is unsent.

    Out: {"sent": 1, "delivered": 2, "undelivered": 0, "failed": 0, "waiting": 3, "errors":
    {"operator": "key", "portal": "CODE: what to do"}}: handed over by this pass (or told
    "sent": no more will be known), told in it, waiting after it; errors, if there are any.
    Differs from PHP: 100 messages at a time, only final statuses, one pass at a time.
    Replace me: with several portals, one pass for each.
    """
    totals = {**dict.fromkeys((*FINAL, "waiting"), 0), "errors": {}}
    Queue.sweep()
    if not crest.get_setting_data():
        return {**totals, "errors": {"portal": "not installed: " + PRESS_SAVE}}
    try:
        with locked("statuses", wait=False):
            if ask_and_tell("failed", totals):
                ask_and_tell("sent", totals)
    except BlockingIOError:
        return {**totals, "note": "another pass is running"}
    totals["sent"] += send_new(once=True)
    if Queue.resting():
        totals["errors"]["operator"] = Queue.resting()
    elif Queue.due("new"):
        wake()  # for what came meanwhile: this thread has to tell and to ask
    idle = not any(totals.values())  # the report that says why all wait stays on the page
    totals["waiting"] = Queue.waiting()
    if not (idle and totals["waiting"]):
        crest.set_log("statuses", **totals)
        crest.update_setting_data(last_pass={"time": int(time.time()), **totals})
    return totals


def ask_and_tell(folder, totals):
    """What is due, 100 at a time, until Bitrix24 takes no more: the rest waits."""
    ids = Queue.due(folder)
    for start in range(0, len(ids), 100):
        batch = list(Queue.read(folder, ids[start:start + 100]))
        unknown = [one for one in batch if not one["status"]]
        if unknown and "operator" not in totals["errors"]:
            ask(unknown, totals)
        final = [one for one in batch if one["status"]]
        if not tell(folder, final, totals):
            return False
    return True


def ask(batch, totals):
    """Ask the operator what became of them, in one request; too old is "undelivered"."""
    ids = sorted({message["operator_id"] for message in batch})
    trouble, found = ask_operator(OPERATOR.statuses, operator_settings(), ids)
    if trouble:
        totals["errors"]["operator"] = trouble
    for message in batch:
        age = time.time() - message["sent_at"]
        status = mapping(found).get(message["operator_id"])
        if status in FINAL or age > GIVE_UP_WAITING * HOUR:
            message["status"] = status if status in FINAL else "undelivered"
        else:  # the older a message, the less often it is asked about
            Queue.postpone("sent", message["message_id"], age / 10)


def tell(folder, batch, totals):
    """Tell Bitrix24; what it took, or never will, leaves the queue. Out: does it go on?

    ("messageservice.message.status.update", "batch")
    """
    answer = crest.call_batch({one["message_id"]: ("messageservice.message.status.update", {
        "CODE": SENDER_CODE, "MESSAGE_ID": one["message_id"], "STATUS": one["status"]})
        for one in batch})
    for message in batch:
        message_id, status = message["message_id"], message["status"]
        refused = mapping(answer["result_error"], message_id).get("error")
        error = refused or answer["error"] or "no_result"
        if message_id in answer["result"]:
            crest.set_log("told", message_id=message_id, status=status)
            totals[status] += 1
            Queue.remove(message_id)
        elif error in CRest.NEVER_HEALS or time.time() - message["received"] > KEEP:
            crest.set_log("dropped", message_id=message_id, status=status, error=error)
            Queue.remove(message_id)
        else:  # it stays, with its status: the operator is not asked again
            heals = error in CRest.SAVE_HEALS
            totals["errors"]["portal"] = f"{error}: {PRESS_SAVE}" if heals else error
            Queue.record(message, folder)
            waited = time.time() - message["received"]
            Queue.postpone(folder, message_id, max(RETRY_AFTER, waited))
    return not answer["error"]


# ---- checkserver.php -------------------------------------------------------------------
@app.get("/checkserver")
def checkserver():
    """Can this server run the application? Out: {"result": []}, or words."""
    with suppress(ValueError):  # damaged settings are told below
        if crest.get_setting_data():
            check_key()
    return {"result": crest.check_server()}


# ---- Sending: rounds, one message, what becomes of it -----------------------------------
# What an operator says about a message that it was given → seconds until the next try. All but
# the first three end sending for as long; the page's words for them are in views/texts.tpl.
OUTCOMES = {
    "sent": 0,  # it has the message
    "failed": 0,  # it will never take this one
    "later": RETRY_AFTER,  # not this one now
    "key": RETRY_AFTER,  # the account: not with this key
    "money": RETRY_AFTER,  # the account: it is empty
    "limit": HOUR,  # the account: no more today
    "busy": RETRY_AFTER,  # the account: slow down
    "down": RETRY_AFTER,  # nothing was sent
    "in doubt": RETRY_AFTER,  # it may have the message: tried once more, then "failed"
}
TROUBLES = ("", "key", "money", "limit", "busy", "down")  # what it may say to a question


def send_new(once=False):
    """Send all that is due, in rounds, or in one. Out: how many the operator accepted.

    In: once, for a pass: a steady stream of messages would keep it from telling and asking.
    One process sends at a time: who doesn't get the lock leaves, and who had it looks again
    after letting it go. The pool is inside: nobody is at the operator without the lock.
    """
    WOKEN.clear()
    accepted = 0
    with suppress(BlockingIOError):  # somebody else sends
        while Queue.due("new", "sending") and may_send():
            with locked("send", wait=False), ThreadPoolExecutor(8) as pool:
                settle_left_over()
                accepted += send_round(pool)
            if once:
                break
    return accepted


def may_send():
    """Not while the app ends, and not after trouble."""
    return not STOP.is_set() and not Queue.resting()


def settle_left_over():
    """We alone send, so whoever left a message in sending/ was killed."""
    for message in Queue.read("sending", Queue.due("sending")):
        if message["operator_id"] or message["status"]:  # recorded; only the move is missing
            folder = "failed" if message["status"] == "failed" else "sent"
            Queue.record(message, "sending", folder)
        else:
            settle(message, "in doubt", "killed")


def send_round(pool):
    """What is due now: one by one until the operator accepts one, then up to 8 at a time.

    First one by one, as an operator that is silent puts each message in doubt that it gets.
    Later the places of those that are answered are filled again after a second at the latest,
    so that silence about one does not hold up the rest. A kill leaves 8 in doubt at most.
    """
    settings, waiting, running = operator_settings(), Queue.due("new"), {}
    accepted, at_once = 0, 1
    while running or (waiting and may_send()):
        free = at_once - len(running) if may_send() else 0
        for message in Queue.take(waiting[:free]):
            running[pool.submit(hand_over, message, settings)] = message
        waiting = waiting[free:]
        for answered in wait(running, timeout=1).done:  # all, or those within a second
            message, (outcome, note) = running.pop(answered), answered.result()
            if outcome == "sent":
                accepted, at_once = accepted + 1, 8
            elif outcome not in ("failed", "later") and not Queue.resting():
                Queue.rest(OUTCOMES[outcome], outcome)
            attempt(settle, message, outcome, note)  # if it raises, the others go on
    return accepted


def hand_over(message, settings):
    """Out: one of OUTCOMES; the operator's id, or a note."""
    old = time.time() - message["received"] > GIVE_UP_UNSENT * HOUR
    if old or not re.search(r"\d", message["to"]) or not message["text"].strip():
        return "failed", "too old, no number, or no text"
    return operate(OPERATOR.send, settings, message, words=OUTCOMES, unsure="in doubt")


def settle(message, outcome, note):
    """From sending/ to where it belongs.

    In: an outcome; what came with it: the operator's id if it is "sent", else a note.
    """
    message_id, doubt = message["message_id"], outcome == "in doubt"
    crest.set_log("send", message_id=message_id, outcome=outcome, note=str(note))
    done = {**message, "to": "", "text": "", "sent_at": time.time()}  # keep little
    if outcome == "sent":  # without an id nobody can ask what became of it
        done.update(operator_id=str(note or ""), status="" if note else "sent")
        Queue.record(done, "sending", "sent")
    elif outcome == "failed" or (doubt and message["in_doubt"]):
        Queue.record({**done, "status": "failed"}, "sending", "failed")
    else:
        message["in_doubt"] = doubt or message["in_doubt"]
        waited = time.time() - message["received"]  # so pauses double, up to an hour
        Queue.move_back(message, max(OUTCOMES[outcome], waited))


# ---- Requests and answers: form, page, refusals, the secret, our address ---------------
LOOPBACK = re.compile(r"http://(localhost|127(\.\d{1,3}){3})(:\d+)?(/|$)")
SECURE = re.compile(r"https://\w|" + LOOPBACK.pattern)


def form():
    """The request's query and form as {name: text}; brackets stay: auth[domain].

    Differs from PHP: UTF-8 is decoded here; bottle's forms.get() returns mojibake.
    """
    length = request.environ.get("CONTENT_LENGTH") or "0"
    small = re.fullmatch("[0-9]{1,6}", length) and int(length) <= 102400
    require(small and not request.chunked, 413, "TOO_LARGE: 100 KB, with a Content-Length")
    body = request.body.read()
    require(len(body) == int(length), 400, "INCOMPLETE: shorter than its Content-Length")
    text = body.decode(errors="replace")  # a message with a broken letter is taken, too
    return dict(parse_qsl(f"{request.query_string}&{text}", keep_blank_values=True))


def page(name, fields, **state):
    """One of views/: "install", "index", or "outside" for who has come without a frame.

    The frame's own tokens go back in this page, which only its portal may frame.
    """
    scheme = "http" if fields.get("PROTOCOL") == "0" else "https"
    host = re.fullmatch(r"[\w.-]+(:\d+)?", fields.get("DOMAIN", ""), re.ASCII)
    portal = f"{scheme}://{host[0]}" if host else "'none'"
    response.set_header("Content-Security-Policy", "frame-ancestors " + portal)
    return template(name if "AUTH_ID" in fields else "outside", fields=fields,
                    ru=fields.get("LANG") == "ru", missing=MISSING, operator=OPERATOR,
                    demo=OPERATOR is Demo, bx24_js=BX24_JS_URL, **state)


@app.hook("after_request")
def safe_headers():
    """Any page may hold a secret: it is not cached, and its address not passed on."""
    response.headers.update({"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def error_in_json(error):
    """What bottle refuses, and what breaks: no path, no traceback."""
    safe_headers()
    response.content_type = "application/json"
    return json.dumps({"error": f"HTTP_{error.status_code}", "error_description": error.status})


def require(condition, status, error):
    """Go on, or refuse as Bitrix24 does. In: the HTTP status, "CODE: what to do"."""
    if not condition:
        code, _, words = error.partition(": ")
        raise HTTPResponse({"error": code, "error_description": words}, status)


def check_key():
    """The secret in our own URLs. Out: the request's fields. Errors: 403, 503."""
    fields, known = form(), crest.get_setting_data().get("handler_key")
    require(known, 503, "NOT_INSTALLED: " + PRESS_SAVE)
    right = compare_digest(known.encode(), fields.get("key", "").encode())
    require(right, 403, "WRONG_KEY: use the address of the last Save, with ?key=SECRET")
    return fields


def public_url():
    """Where the portal reaches us, with "/" at its end. Errors: 400 if it is not https.

    The Host of a request can be forged: only a proven administrator's is saved.
    """
    host = request.environ.get("HTTP_HOST", "")
    scheme = "http" if LOOPBACK.match(f"http://{host}") else "https"
    url = (PUBLIC_URL or f"{scheme}://{host}").rstrip("/") + "/"
    require(SECURE.match(url), 400, "WRONG_HOST: set PUBLIC_URL to an https:// address")
    return url


# ---- crest.php: the network, class CRest -----------------------------------------------
APP_INFO = OAUTH_URL + "/rest/app.info"  # whose token is it, and where is its portal?
# Nobody there, no such host, no answer to the call; a certificate that can't be trusted
NOT_CONNECTED = (urllib3.exceptions.NewConnectionError, ssl.SSLCertVerificationError,
                 urllib3.exceptions.ConnectTimeoutError)


def post(url, method="POST", **what):
    """The one place that reaches the network.

    In: what requests knows: data={...} (a form), json=, params=, headers=, auth=.
    Out: the HTTP status, and what was answered: JSON of any type, or else the text; no
    redirect is followed. Status 0: not connected, nothing was sent. Errors:
    requests.RequestException, for silence or a cut line: it may have got through.
    """
    if not SECURE.match(url):
        return 0, "not https"
    try:
        got = requests.request(method, url, timeout=TIMEOUT, allow_redirects=False, **what)
        return got.status_code, got.json()
    except (requests.JSONDecodeError, RecursionError):
        return got.status_code, got.text
    except requests.ConnectionError as error:
        cause = error  # requests wraps urllib3's, which wraps Python's
        while cause and not isinstance(cause, NOT_CONNECTED):
            cause = cause.__context__
        if not cause:
            raise
        return 0, "not connected"


def mapping(answer, *names):
    """Walk down answer[name][name] to a dict, or {}. PHP writes {} as [], {"0": x} as [x]."""
    for name in names:
        answer = mapping(answer).get(name)
    if isinstance(answer, list):
        answer = {str(number): item for number, item in enumerate(answer)}
    return answer if isinstance(answer, dict) else {}


class CRest:
    """CRest 1.36 for one portal. Inherit it, override get_ and set_setting_data.

    Differs from PHP: tokens are proven before they are saved, and changed under a lock.
    """

    NEVER_HEALS = ("ERROR_MESSAGE_NOT_FOUND", "ERROR_MESSAGE_STATUS_INCORRECT")
    SAVE_HEALS = ("expired_token", "invalid_token", "NO_AUTH_FOUND", "invalid_grant",
                  "wrong_client", "invalid_client", "ACCESS_DENIED", "user_access_error",
                  "no_install_app")

    def get_setting_data(self):
        """Replace me: read them from your store. Out: {} before the installation."""
        with suppress(FileNotFoundError, NotADirectoryError), open(SETTINGS) as file:
            return json.load(file)
        return {}

    def set_setting_data(self, settings):
        """Replace me: write them to your store. In: {} when the app is uninstalled."""
        write(SETTINGS, settings)

    def update_setting_data(self, **news):
        """Change these, under the lock. Out: all; {}: uninstalled meanwhile."""
        with locked("settings"):
            settings = self.get_setting_data()
            if settings:
                settings.update(news)
                self.set_setting_data(settings)
        return settings

    def check_token(self, fields):
        """Believe the OAuth server about a token, the portal about its administrator.

        In: a frame's or an event's fields, all of which can be forged. Out: what to save.
        Errors: 403 not ours, another portal, no administrator; 503. ("app.info")
        """
        require(not MISSING, 503, f"NO_CLIENT_ID: set {' and '.join(MISSING)}, restart")
        names = {  # the name in an event's auth[...]: the name in a frame
            "access_token": "AUTH_ID", "refresh_token": "REFRESH_ID",
            "application_token": "APPLICATION_TOKEN"}
        found = {event: fields.get(frame, fields.get(f"auth[{event}]", ""))
                 for event, frame in names.items()}
        status, answer = self.request(APP_INFO, data={"auth": found["access_token"]})
        answered = "result" in answer or status in (400, 401, 403)
        require(answered, 503, "OAUTH_SERVER: it did not answer; try again")
        ours = mapping(answer, "result").get("client_id") == CLIENT_ID
        require(ours, 403, "WRONG_TOKEN: not this application's token; reload the page")
        portal = mapping(answer, "result", "install")
        found.update({name: portal.get(name) for name in ("member_id", "client_endpoint")})
        known = self.get_setting_data().get("member_id", found["member_id"])
        moved = "OTHER_PORTAL: to move to another portal, delete settings.json"
        require(known == found["member_id"], 403, moved)
        answer = self.call_curl(found, "profile", {})
        code = "ACCESS_DENIED" if answer.get("error") == "ACCESS_DENIED" else "PORTAL"
        profile = mapping(answer, "result")
        require(profile, 503, f"{code}: Bitrix24 does not let the app in; try again")
        require(profile.get("ADMIN") is True, 403, "NOT_ADMIN: only administrators may")
        return found

    def install_app(self, found, **typed):
        """Save what is proven and typed; the rest stays, such as the handler_key."""
        with locked("settings"):
            settings = {"handler_key": token_urlsafe(24), **self.get_setting_data()}
            settings.update({name: value for name, value in found.items() if value})
            operators = settings.setdefault("operators", {})
            operators[SMS_OPERATOR] = {**operators.get(SMS_OPERATOR, {}), **typed}
            self.set_setting_data(settings)
        return settings

    def call(self, method, params):
        """A REST method with the saved tokens. Out: {"result": ...} or {"error": "CODE"}"""
        settings = self.get_setting_data()
        answer = self.call_curl(settings, method, params)
        if answer.get("error") == "HTTP_302":  # the portal was renamed
            answer = self.call_curl(self.get_new_endpoint(settings), method, params)
        if answer.get("error") == "expired_token":  # to renew earlier may get us blocked
            answer = self.call_curl(self.get_new_auth(settings), method, params)
        return answer

    def call_curl(self, settings, method, params):
        """In: settings, or the {"error": "CODE"} in their place. A 503 is waited out."""
        if "access_token" not in settings:
            return {"error": settings.get("error", "no_install_app")}
        url = f"{settings['client_endpoint']}{method}.json"
        for pause in PAUSES_503:
            status, answer = self.request(url, json={"auth": settings["access_token"], **params})
            if status != 503 or STOP.wait(pause):
                break
        return answer

    def request(self, url, **what):
        """In: as post(). Out: the HTTP status, Bitrix24's answer or {"error": "CODE"}."""
        try:
            status, answer = post(url, **what)
        except (requests.RequestException, ValueError):
            return 0, {"error": "no_answer"}
        known = mapping(answer)
        if status == 200 and isinstance(answer, dict) and "error" not in answer:
            return status, answer
        return status, {**known, "error": str(known.get("error", f"HTTP_{status}"))}

    def get_new_endpoint(self, settings):
        """Out: settings with the address by the OAuth server; "Location" may lie."""
        _, answer = self.request(APP_INFO, data={"auth": settings["access_token"]})
        endpoint = mapping(answer, "result", "install").get("client_endpoint")
        if not endpoint:
            return {"error": answer.get("error", "oauth_server")}
        self.update_setting_data(client_endpoint=endpoint)
        return {**settings, "client_endpoint": endpoint}

    def get_new_auth(self, expired):
        """Out: settings with a new token, or {"error": "CODE"}. ("OAuth 2.0")"""
        with locked("settings"):
            settings = self.get_setting_data()
            if settings.get("access_token") != expired["access_token"]:  # it is new already
                return settings
            self.set_setting_data(settings)  # a full disk raises before the old are spent
            _, answer = self.request(OAUTH_URL + "/oauth/token/", data={
                "grant_type": "refresh_token", "refresh_token": settings.get("refresh_token"),
                "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET})
            if not answer.get("access_token"):
                return {"error": answer.get("error", "oauth_server")}
            for name in ("access_token", "refresh_token", "client_endpoint"):
                settings[name] = answer.get(name) or settings.get(name)
            self.set_setting_data(settings)
        return settings

    def call_batch(self, commands, halt=0):
        """In: {name: (method, params)}, 50 a request. Out: result, result_error, error."""
        whole, names = {"result": {}, "result_error": {}, "error": ""}, list(commands)
        for start in range(0, len(names), 50):
            cmd = {name: f"{commands[name][0]}?{urlencode(commands[name][1])}"
                   for name in names[start:start + 50]}
            answer = self.call("batch", {"halt": halt, "cmd": cmd})
            for kind in ("result", "result_error"):
                whole[kind].update(mapping(answer, "result", kind))
            if "error" in answer:
                return {**whole, "error": answer["error"]}
        return whole

    def set_log(self, kind, **data):
        """Replace me. In: names, ids and codes; never a text, a token, a full number.

        Out: a line of JSON in logs/app.log, and in the terminal.
        """
        LOG.info(json.dumps({"time": time.strftime("%F %T"), "type": kind, **data}))

    def check_server(self):
        """What to mend before the app can run here, in words: no paths, no versions."""
        mend = [f"Set {name}: see the application's card in Bitrix24." for name in MISSING]
        urls = {"PUBLIC_URL": PUBLIC_URL, "OAUTH_URL": OAUTH_URL, "SMSRU_URL": SMSRU_URL}
        plain = [name for name, url in urls.items() if url and not SECURE.match(url)]
        mend += [f"{name} must begin with https://" for name in plain]
        try:
            self.get_setting_data()
            write(QUEUE / "new" / "check", mend)
            os.unlink(QUEUE / "new" / "check")
        except OSError as error:
            mend.append(f"Let this user write to DATA_DIR: {error.strerror}.")
        except ValueError:
            mend.append("settings.json is damaged: delete it, then install again.")
        return mend


# ---- data/: whole files, locks, the queue ----------------------------------------------
SETTINGS, QUEUE = f"{DATA_DIR}/settings.json", DATA_DIR / "queue"
SEND_LOCK = DATA_DIR / "send.lock"  # of locked("send"); its mtime: sending rests until then
FOLDERS = ("new", "sending", "sent", "failed")  # how far it is; the later one counts
os.umask(0o077)  # files 0600, folders 0700
for folder in (DATA_DIR, LOGS_DIR, QUEUE, *[QUEUE / name for name in FOLDERS]):
    with suppress(OSError):  # checkserver tells; a volume that is not ours keeps its mode
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may come from git, readable by all


def write(path, data, put=os.replace):
    """Written aside, flushed, put in place: after a crash it is whole, or not there.

    In: put: os.link raises FileExistsError instead of replacing.
    """
    aside = f"{DATA_DIR}/{token_hex(8)}.tmp"
    try:
        with open(aside, "xb") as file:
            file.write(json.dumps(data).encode())
            file.flush()  # a full disk raises here
            os.fsync(file.fileno())
        put(aside, path)
        flush_folder(os.path.dirname(path))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside)


def flush_folder(path):
    """Only then does a name in it outlive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


@contextmanager
def locked(name, wait=True):
    """Replace me: a lock between threads and processes that dies with its owner.

    In: "settings", "send", "statuses". Errors: BlockingIOError, if it is not to wait.
    """
    with open(f"{DATA_DIR}/{name}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


class Queue:
    """Replace me: what waits, a JSON file each, in the folder that says how far it is.

    A message may lie in two: move_back() was killed, or Bitrix24 repeated one that is in
    sent/. The later folder counts, and whoever reads it in the earlier one, the sender or
    the pass, removes it there. A file's mtime says when it is due, and nothing else.
    Plain functions, as there is one queue.
    """

    def path(folder, message_id):
        return f"{QUEUE}/{folder}/{message_id}.json"

    def put(message):
        """Into new/, on disk when this returns; what waits there stays as it is."""
        with suppress(FileExistsError):
            write(Queue.path("new", message["message_id"]), message, os.link)

    def due(*folders):
        """The ids of what is due now in these folders, the longest waiting first."""
        found, now = [], time.time()
        for file in [file for folder in folders for file in os.scandir(QUEUE / folder)]:
            with suppress(FileNotFoundError):  # it is just leaving
                found.append((file.stat().st_mtime, file.name))
        return [name[:-5] for due, name in sorted(found) if due <= now and name.endswith(".json")]

    def read(folder, ids):
        """Yield the messages that are still there; what can't be read is set aside."""
        later = FOLDERS[FOLDERS.index(folder) + 1:]
        for message_id in ids:
            path = Queue.path(folder, message_id)
            try:
                if any(os.path.exists(Queue.path(one, message_id)) for one in later):
                    os.unlink(path)
                else:
                    with open(path, "rb") as file:
                        message = dict(json.load(file))
                    yield message
            except FileNotFoundError:  # told, or cleared meanwhile
                pass
            except (ValueError, TypeError, RecursionError, PermissionError):
                crest.set_log("unreadable", message_id=message_id)
                aside = Path(path).rename(QUEUE / f"{message_id}.unreadable")
                with suppress(PermissionError):
                    aside.touch()  # kept for 14 days from now on

    def take(ids):
        """From new/ to sending/, on disk before the operator is asked. Out: the messages."""
        for message_id in ids:
            with suppress(FileNotFoundError):  # clear() took it meanwhile
                os.rename(Queue.path("new", message_id), Queue.path("sending", message_id))
        flush_folder(QUEUE / "sending")
        return list(Queue.read("sending", ids))

    def move_back(message, pause):
        """From sending/ to new/, with a doubt in it: written there, then removed here.

        A kill in between leaves it in both: the one in sending/ counts, as in doubt.
        """
        message_id = message["message_id"]
        path = Queue.path("sending", message_id)
        if os.path.exists(path):  # else clear() took it meanwhile
            write(Queue.path("new", message_id), message)
            Queue.postpone("new", message_id, pause)
            os.unlink(path)

    def record(message, folder, later=None):
        """Written over what is there, then renamed, if there is a later folder to go to.

        Not with write(): a new file takes most of the time that a message needs. A kill in
        between leaves it in its folder with the outcome inside: settle_left_over(). If a
        power cut tears the write, read() sets it aside: it is never sent again.
        """
        path = Queue.path(folder, message["message_id"])
        with suppress(FileNotFoundError), open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.write(json.dumps(message).encode().ljust(size))  # spaces over the text
            file.flush()
            os.fsync(file.fileno())
            os.rename(path, Queue.path(later or folder, message["message_id"]))

    def postpone(folder, message_id, pause):
        """Due again in so many seconds, an hour at most."""
        due = time.time() + min(pause, HOUR)
        with suppress(FileNotFoundError):
            os.utime(Queue.path(folder, message_id), (due, due))

    def remove(message_id):
        """From all folders, new/ first: a duplicate there must not outlive the others."""
        for folder in FOLDERS:
            with suppress(FileNotFoundError):
                os.unlink(Queue.path(folder, message_id))

    def waiting():
        """How many there are, in all folders, due or not."""
        return len(list(QUEUE.glob("*/*.json")))

    def clear():
        """The administrator uninstalled the app and asked for that: data[CLEAN]=1."""
        for path in (*QUEUE.glob("*/*.json"), *QUEUE.glob("*.unreadable")):
            path.unlink(missing_ok=True)

    def sweep():
        """What a killed process left half written, and what was set aside long ago."""
        for pattern, age in (("*.tmp", HOUR), ("queue/*.unreadable", KEEP)):
            for path in DATA_DIR.glob(pattern):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > age:
                        path.unlink()

    def rest(seconds, outcome=""):
        """Send nothing for so long: the lock's mtime says until when, its text why."""
        until = time.time() + seconds
        with suppress(OSError):  # no room for the text
            SEND_LOCK.write_text(outcome)
        os.utime(SEND_LOCK, (until, until))

    def hurry():
        """All that waits is due, and sending rests no more."""
        for message_id in [path.stem for path in (QUEUE / "new").iterdir()]:
            Queue.postpone("new", message_id, 0)
        Queue.rest(0)

    def resting():
        """Out: why nothing is sent for now, or ""."""
        with suppress(FileNotFoundError):
            if os.stat(SEND_LOCK).st_mtime > time.time():
                return SEND_LOCK.read_text() or "down"
        return ""


# ---- Operators: operate, Demo, SmsRu ---------------------------------------------------
HTTP_SAYS = {0: "down", 429: "busy", 503: "down"}  # statuses by which nothing was taken
SMSRU_TROUBLE = {  # every other code is "failed"
    100: "", 200: "key", 201: "money", 206: "limit", 220: "down", 500: "down",
    **dict.fromkeys((300, 301, 302), "key"), **dict.fromkeys((230, 231, 232, 233), "later")}
SMSRU_STATUSES = {-1: "", 100: "", 101: "", 102: "", 103: "delivered", 110: "delivered",
                  **dict.fromkeys((104, 105, 106, 107, 108, 150), "undelivered")}


def operate(work, *args, words, unsure):
    """The one place that calls an operator. Out: one of these words, and what came with it.

    In: unsure, the word for an exception, and for any answer that is no such pair.
    """
    answer = attempt(work, *args)
    if isinstance(answer, tuple) and len(answer) == 2 and answer[0] in list(words):
        return answer
    return unsure, "mistake"


def ask_operator(question, *args):
    """Its check or statuses: to a question, whatever makes no sense is "down"."""
    return operate(question, *args, words=TROUBLES, unsure="down")


def operator_settings():
    """Each of the operator's fields as text; SMS_API_KEY until a key is saved."""
    empty = {field["name"]: "" for field in OPERATOR.FIELDS}
    saved = crest.get_setting_data().get("operators", {}).get(SMS_OPERATOR, {})
    return {**empty, "api_key": SMS_API_KEY, **saved}


class Demo:
    """Replace me: an operator. Nothing is sent; numbers in 01, 02, 03 meet trouble.

    Plain functions; each answers one of OUTCOMES and what goes with it. If they raise, a
    message may have been sent. settings has each of FIELDS as text.
    """

    FIELDS = ({"name": "api_key", "secret": True,
               "en": ("API key", "Any key will do: nothing is sent."),
               "ru": ("Ключ API", "Подойдёт любой: ничего не отправляется.")},)

    def check(settings):
        """Before a Save. Out: "" or what is in the way ("key": not these); a note."""
        return ("" if settings["api_key"] else "key"), ""

    def send(settings, message):
        """In: as handler() made it. Out: "sent" and the operator's id ("": it has none), or
        what is in the way and a note for the log (no number, no text)."""
        end = re.sub(r"\D", "", message["to"])[-2:]
        if end == "02":
            return "failed", "refused"
        if end == "03" and not message["in_doubt"]:
            return "in doubt", "no answer"
        return "sent", f"{time.time()}-{end}"

    def statuses(settings, ids):
        """In: up to 100 of the operator's ids. Out: "" or what is in the way, and
        {id: one of FINAL}, without those that are under way."""
        old = [one for one in ids if time.time() - float(one.partition("-")[0]) > 1]
        return "", {one: "undelivered" if one.endswith("-01") else "delivered" for one in old}


class SmsRu:
    """SMS.ru ("API: sending", "API: status"): a number a request, 100 ids a question."""

    FIELDS = ({"name": "api_key", "secret": True,
               "en": ("API key", "api_id, in your SMS.ru account's settings"),
               "ru": ("Ключ API", "api_id из настроек личного кабинета SMS.ru")},)

    def request(path, settings, **fields):
        """Out: "" and the answer, or trouble and SMS.ru's code, for ask_operator() too."""
        fields = {**fields, "api_id": settings["api_key"], "json": 1}
        status, answer = post(SMSRU_URL + path, data=fields)
        if status in HTTP_SAYS:
            return HTTP_SAYS[status], status
        if path == "/sms/send":  # its one number's entry; none if all is refused
            answer = next(iter(mapping(answer, "sms").values()), answer)
        code = mapping(answer).get("status_code")
        if not isinstance(code, int):  # SMS.ru did not write this
            return "in doubt", "no sense"
        trouble = SMSRU_TROUBLE.get(code, "failed")
        return (trouble, code) if trouble else ("", answer)

    def check(settings):
        return SmsRu.request("/auth/check", settings)

    def send(settings, message):
        digits = re.sub(r"\D", "", message["to"])
        to = re.sub(r"^8(?=\d{10}$)", "7", digits)  # 8 925 is +7 925
        trouble, answer = SmsRu.request("/sms/send", settings, to=to, msg=message["text"],
                                        test=SMSRU_TEST or None)
        if message["in_doubt"] and answer in (231, 232):  # our first try arrived
            return "sent", ""
        return (trouble, answer) if trouble else ("sent", answer["sms_id"])

    def statuses(settings, ids):
        trouble, answer = SmsRu.request("/sms/status", settings, sms_id=",".join(ids))
        found = {one: mapping(answer, "sms", one) for one in ids}
        return trouble, {one: SMSRU_STATUSES.get(entry.get("status_code"), "failed")
                         for one, entry in found.items() if entry.get("status") == "OK"}


# ---- Run: the operator, the log, python app.py [statuses | checkserver] ----------------
# Replace me: add your operator
OPERATORS = {"demo": Demo, "smsru": SmsRu}
if SMS_OPERATOR not in OPERATORS:
    sys.exit(f"SMS_OPERATOR is one of {', '.join(OPERATORS)}")
OPERATOR = OPERATORS[SMS_OPERATOR]
crest = CRest()  # Replace me: your subclass
app.default_error_handler = error_in_json
BACKGROUND = ThreadPoolExecutor(1)  # its thread starts with the first message
WOKEN = threading.Event()  # it has work that it has not begun
LOG = logging.getLogger("app")  # one JSON object a line; rotation is logrotate's
LOG.setLevel(logging.INFO)
LOG.propagate = logging.raiseExceptions = False  # a full disk must not refuse a message
if BLOCK_LOG != "1":
    LOG.addHandler(logging.StreamHandler())
    with suppress(OSError):
        LOG.addHandler(logging.FileHandler(LOGS_DIR / "app.log"))


def attempt(work, *args):
    """Where nobody waits for an answer: a mistake goes to the log. Out: None then.

    Its type and where: an exception's own words may hold a secret, such as an address.
    """
    try:
        return work(*args)
    except Exception as error:  # noqa: BLE001
        steps = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(step.filename).name}:{step.lineno}" for step in steps]
        crest.set_log("mistake", error=type(error).__name__, where=where)


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # they do not hold up the end
    request_queue_size = 1024  # Bitrix24 may call a thousand times at once

    def handle_error(self, *_):
        """The other side went away, or kept silent for 30 seconds."""


class Connection(WSGIRequestHandler):
    timeout = 30  # seconds of silence

    def log_message(self, *_):
        """No access log: the request line holds the secret."""


def passes():
    """One pass after the other, in a thread of its own; a mistake ends one, not all."""
    while STATUSES_EVERY and not STOP.wait(STATUSES_EVERY):
        attempt(one_pass)


def card():
    """What to enter in the application's card in Bitrix24, in words."""
    url = PUBLIC_URL.rstrip("/") or "(set PUBLIC_URL)"
    return (f"In the card: handler path {url}/index, installation path {url}/install, "
            "permission messageservice")


def way_in():
    """Does PUBLIC_URL lead here, through tunnel and proxy? Only this app takes our key."""
    key = crest.get_setting_data().get("handler_key")
    url = PUBLIC_URL.rstrip("/") + "/checkserver"
    _, answer = crest.request(url, method="GET", params={"key": key})
    if "result" in answer:
        return "PUBLIC_URL leads to this application"
    return f"PUBLIC_URL does not lead here: start the app (at {HOST}:{PORT}), and the tunnel"


def serve():
    """Until SIGTERM or Ctrl-C; then what is at the operator is still waited for."""
    try:
        server = make_server(HOST, PORT, app, Server, Connection)
    except OSError as error:
        sys.exit(f"Can't listen on {HOST}:{PORT}: {error.strerror}. Set HOST or PORT.")
    note = DEMO_NOTE if OPERATOR is Demo else ""
    print(f"http://{HOST}:{PORT}/ with the operator {SMS_OPERATOR}{note}\n{card()}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    thread = threading.Thread(target=passes)
    with suppress(KeyboardInterrupt):
        thread.start()
        server.serve_forever()
    STOP.set()
    server.server_close()
    BACKGROUND.shutdown(cancel_futures=True)
    thread.join()


def main(command=""):
    """Exit code 1: the pass met trouble, the server is to be mended, or can't listen."""
    if command not in ("", "statuses", "checkserver"):
        print("Usage: python app.py [statuses | checkserver | --help]", __doc__, sep="\n\n")
        sys.exit(command != "--help")
    if command == "statuses":
        if os.path.exists(SETTINGS) and os.stat(SETTINGS).st_uid != os.geteuid():
            sys.exit("settings.json is another user's: run this as the app's user")
        totals = one_pass()
        print(json.dumps(totals))
        sys.exit(bool(totals["errors"]))
    mend = crest.check_server()
    print(*mend or ["This server can run the application."], sep="\n")
    if command == "checkserver":
        print(card(), way_in() if PUBLIC_URL and not mend else "", sep="\n")
        sys.exit(bool(mend))
    serve()


if __name__ == "__main__":
    main(*sys.argv[1:2])
