"""A pretend Bitrix24 portal: its REST, its frame, its messages and events, over real HTTP.

Written from the public REST documentation (https://apidocs.bitrix24.com, the pages
"How to call REST", "messageservice", "Events", "Limits"), not from the app it is there to try.
Tests turn its switches; nothing here knows what the app looks like inside.
"""
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests

from .oauth import CORS, HOUR, TOKEN_ERRORS, RestError, random_id
from .wire import Party, flat

SCOPE = "messageservice"
ADMINISTRATOR, EMPLOYEE = 1, 2
STATUSES = ("queued", "sent", "delivered", "undelivered", "failed")
EVENTS = ("ONAPPINSTALL", "ONAPPUPDATE", "ONAPPUNINSTALL")


class Moved(Party):
    """A renamed portal's old address: every request gets 302 to the same path of the new one."""

    def __init__(self, portal):
        super().__init__(portal.wire, portal.port)
        self.portal, self.name, self.server = portal, portal.name, portal.server
        self.server.party = self  # takes over the listening socket, no connection is cut

    def noted(self, method, path):
        return self.portal.noted(method, path)

    def answer(self, method, path, fields, request):
        return 302, "<html><title>302 Found</title></html>", {
            "Location": self.portal.url + request.path, **CORS}


class Calls:
    """What the portal sends to the app: the frame's POST, messages, events."""

    def open_frame(self, user=ADMINISTRATOR, page="install", lang="ru"):
        """Return (url, fields) of the POST that opens a page of the app in the portal's iframe."""
        tokens = self.oauth.issue(self, user)
        query = {"DOMAIN": self.domain, "PROTOCOL": 0, "LANG": lang, "APP_SID": random_id()}
        fields = {"AUTH_ID": tokens["access_token"], "AUTH_EXPIRES": str(HOUR),
                  "REFRESH_ID": tokens["refresh_token"], "APPLICATION_SCOPE": self.scope,
                  "APPLICATION_TOKEN": self.application_token, "member_id": self.member_id,
                  "SERVER_ENDPOINT": self.oauth.url + "/rest/", "status": "L",
                  "PLACEMENT": "DEFAULT", "PLACEMENT_OPTIONS": "[]"}
        return self.app_url + page + "?" + urlencode(query), fields

    def show_frame(self, user=ADMINISTRATOR, page="install", lang="ru"):
        """Open that page, as the browser that the portal makes POST the form."""
        url, fields = self.open_frame(user, page, lang)
        return self.wire.post("browser", "app", url, fields, {"Origin": self.url})

    def author(self, user):
        """Return `auth` as an author's message carries it: his token, and no refresh token."""
        known = self.authors.get(user)
        if not known or known["expires"] <= self.oauth.clock():
            known = self.authors[user] = self.oauth.issue(self, user, refresh=False)
        return {"access_token": known["access_token"], "expires": known["expires"],
                "domain": self.domain, "member_id": self.member_id, "user_id": user,
                "application_token": self.application_token}

    def message_fields(self, to, text, message_id, code, robot=False, author=ADMINISTRATOR):
        """Return the HANDLER's fields ("messageservice.sender.add", the handler's data).

        A message from a CRM card brings bindings and its author's auth, a robot's brings neither.
        """
        fields = {"module_id": "crm", "bindings": [{"OWNER_TYPE_ID": 3, "OWNER_ID": 123}]}
        if robot:
            fields = {"module_id": "bizproc", "workflow_id": "5f9c1e2b7a4d83.41672095",
                      "document_id": ["crm", "CCrmDocumentContact", "CONTACT_123"],
                      "document_type": ["crm", "CCrmDocumentContact", "CONTACT"]}
        fields.update(properties={"phone_number": to, "message_text": text}, type="SMS", code=code,
                      message_id=message_id, message_to=to, message_body=text,
                      ts=int(self.oauth.clock()))
        return flat(fields if robot else {**fields, "auth": self.author(author)})

    def send_message(self, to, text, robot=False, message_id=None, code=None,
                     author=ADMINISTRATOR):
        """Write a message down as "sent", call the HANDLER once, return (message_id, status).

        Without a code it goes by the first provider in the list. Status 0: no answer; None: not
        called, since the app is not installed or has no sender. The portal shows "sent" whatever
        the app answers and never calls again.
        """
        message_id = message_id or random_id()
        with self.lock:
            code = code or next(iter(self.senders), "fastsms")
            self.messages[message_id] = {"to": to, "body": text, "code": code, "status": "sent",
                                         "history": ["sent"], "author": 0 if robot else author}
            sender = self.senders.get(code)
        if not sender or not self.installed:
            return message_id, None
        fields = self.message_fields(to, text, message_id, code, robot, author)
        return message_id, self.deliver(sender["HANDLER"], fields)

    def send_many(self, messages, connections=16):
        """Send many (to, text) at once; returns what send_message returns, in the same order."""
        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(lambda one: self.send_message(*one), messages))

    def deliver(self, url, fields):
        try:
            return self.wire.post("portal", "app", url, fields).status_code
        except requests.RequestException:
            return 0

    def fire(self, event, url=None, **data):
        """Send an application event; returns the app's HTTP status, None when nobody is bound.

        "Events": ONAPPINSTALL goes to the install URL, with tokens and without installFinish.
        ONAPPUPDATE brings a new application_token; senders and bindings of the old version are
        gone by then. ONAPPUNINSTALL has no tokens: they are dead before it is sent.
        """
        event = event.upper()
        with self.lock:
            bound = url or next((one["handler"] for one in self.bindings
                                 if one["event"] == event), None)
            fields = getattr(self, event.lower())(data)
        if event == "ONAPPINSTALL":
            bound = bound or self.app_url + "install"
        if not bound:
            return None
        return self.deliver(bound, flat({"event": event, "ts": int(self.oauth.clock()), **fields}))

    def onappinstall(self, data):
        self.installed = True
        return {"data": {"VERSION": self.version, "ACTIVE": "Y", "INSTALLED": "Y",
                         "LANGUAGE_ID": "ru", **data}, "auth": self.event_auth()}

    def onappupdate(self, data):
        previous, self.version = self.version, self.version + 1
        self.senders, self.bindings = {}, []
        self.application_token = random_id()
        return {"data": {"VERSION": self.version, "PREVIOUS_VERSION": previous,
                         "LANGUAGE_ID": "ru", **data}, "auth": self.event_auth()}

    def onappuninstall(self, data):
        self.kill_tokens()
        self.senders, self.bindings, self.installed = {}, [], False
        return {"data": {"LANGUAGE_ID": "ru", "CLEAN": 1, **data}, "auth": {
            "domain": self.domain, "member_id": self.member_id, "client_endpoint": self.endpoint,
            "server_endpoint": self.oauth.url + "/rest/",
            "application_token": self.application_token}}

    def event_auth(self, user=ADMINISTRATOR):
        return {**self.oauth.issue(self, user), "scope": self.scope, "domain": self.domain,
                "server_endpoint": self.oauth.url + "/rest/", "status": "L", "user_id": user,
                "client_endpoint": self.endpoint, "member_id": self.member_id,
                "application_token": self.application_token}


class Portal(Calls, Party):
    """One portal: its users, the application installed there, REST at /rest/METHOD[.json]."""

    name = "portal"
    bucket_depth, bucket_speed = 50, 2  # "Limits": requests held, requests a second that drain

    def __init__(self, wire=None, oauth=None, port=0, client_id="local.5c8bb1b0891cf2.87252039",
                 client_secret="SakeVG5mbRdcQet45UUrt6q72AMTo7fkwXSO7Y5LYFYNCRsA6f"):
        super().__init__(wire, port)
        self.oauth = oauth
        self.client_id, self.client_secret = client_id, client_secret
        oauth.clients[client_id] = client_secret
        self.member_id, self.application_token = random_id(), random_id()
        self.scope, self.version, self.installed = SCOPE, 1, False
        self.users = {ADMINISTRATOR: {"NAME": "Анна", "ADMIN": True, "active": True},
                      EMPLOYEE: {"NAME": "Пётр", "ADMIN": False, "active": True}}
        self.app_url = ""     # where the app is reached, with a slash at the end
        self.senders = {}     # CODE → fields of messageservice.sender.add
        self.bindings = []    # {"event", "handler"}
        self.messages = {}    # message_id → {"to", "body", "code", "status", "history", "author"}
        self.authors = {}     # user → tokens given to the messages he writes
        self.limit = False        # True: the leaky bucket of "Limits" is on
        self.binding_error = "ERROR_EVENT_BINDING_EXISTS"  # some portals say ERROR_CORE
        self.pages = {"/api/v1/": ("application/javascript", "/* the pretend BX24.js */\n")}
        self.site = None      # what answers beside REST: box.py's page for a person
        self.bucket, self.moment, self.moved = 0.0, 0.0, []
        self.lock = threading.RLock()

    @property
    def domain(self):
        return urlsplit(self.url).netloc

    @property
    def endpoint(self):
        return self.url + "/rest/"

    def stop(self):
        for old in self.moved:
            old.stop()
        super().stop()

    def rename(self):
        """Move to another address; the old one answers 302 from now on."""
        self.moved.append(Moved(self))
        self.server, self.port = None, 0
        return self.start()

    def expire_tokens(self):
        """Let the hour of every access token be over; refresh tokens stay good."""
        with self.oauth.lock:
            for owner in self.oauth.tokens.values():
                if owner["portal"] is self:
                    owner["expires"] = 0
            self.authors.clear()

    def kill_tokens(self):
        """Forget every token of this portal, as an uninstall does."""
        with self.oauth.lock:
            for store in (self.oauth.tokens, self.oauth.refresh):
                for token in [t for t, owner in store.items() if owner["portal"] is self]:
                    del store[token]
            self.authors.clear()

    def noted(self, method, path):
        return path.startswith("/rest/") and method != "OPTIONS"

    def answer(self, method, path, fields, request):
        if path in self.pages:
            kind, text = self.pages[path]
            return 200, text, {"Content-Type": kind + "; charset=utf-8"}
        if not path.startswith("/rest/"):
            missing = 404, "<html><title>404 Not Found</title></html>", {}
            return self.site(method, path, fields, request) if self.site else missing
        if method == "OPTIONS":
            return 200, "", CORS
        try:
            with self.lock:
                self.drip()
                name = re.sub(r"\.json$", "", path[len("/rest/"):])
                return 200, {"result": self.call(name, fields), "time": self.time()}, CORS
        except RestError as error:
            return error.status, error.body, CORS

    def drip(self):
        """ "Limits": a bucket 50 deep that loses two a second; what overflows gets 503."""
        now = self.oauth.clock()
        self.bucket = max(0.0, self.bucket - (now - self.moment) * self.bucket_speed)
        self.moment = now
        if self.limit and self.bucket + 1 > self.bucket_depth:
            raise RestError("QUERY_LIMIT_EXCEEDED", "Too many requests", 503)
        self.bucket += 1

    def time(self):
        now = self.oauth.clock()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now))
        return {"start": now, "finish": now, "duration": 0.01, "processing": 0.005,
                "date_start": stamp, "date_finish": stamp,
                "operating_reset_at": int(now) + 600, "operating": 0}

    def call(self, name, fields):
        """Find who calls, then the method. Names of REST methods do not care about case."""
        owner = self.oauth.owner(fields.get("auth", ""))
        if owner["portal"] is not self:
            raise RestError("invalid_token", TOKEN_ERRORS["invalid_token"], 401)
        user = {"ID": owner["user"], **self.users[owner["user"]]}
        if not user["active"]:
            raise RestError("user_access_error", "The user has no access to the application", 403)
        name = name.lower()
        if name not in METHODS:
            raise RestError("ERROR_METHOD_NOT_FOUND", "Method not found!", 404)
        if name.startswith("messageservice.") and SCOPE not in self.scope.split(","):
            raise RestError("insufficient_scope", "The request requires higher privileges", 403)
        return METHODS[name](self, user, fields)

    def profile(self, user, fields):
        """REST `profile`: ADMIN tells an administrator from an employee."""
        return {"ID": str(user["ID"]), "ADMIN": user["ADMIN"], "NAME": user["NAME"],
                "LAST_NAME": "", "PERSONAL_GENDER": "", "TIME_ZONE": ""}

    def batch(self, user, fields):
        """ "batch": cmd[KEY]=method?parameters, at most 50; PHP's way with maps shows in it."""
        commands = {name[4:-1]: text for name, text in fields.items() if name.startswith("cmd[")}
        if len(commands) > 50:
            raise RestError("ERROR_BATCH_LENGTH_EXCEEDED", "Max batch length exceeded")
        results, errors, times = {}, {}, {}
        for key, text in commands.items():
            name, _, query = text.partition("?")
            inner = dict(parse_qsl(query, keep_blank_values=True))
            try:
                if name.lower() == "batch":
                    raise RestError("ERROR_BATCH_METHOD_NOT_ALLOWED", "Not allowed in a batch")
                results[key] = self.call(name, {**inner, "auth": fields["auth"]})
                times[key] = self.time()
            except RestError as error:
                errors[key] = error.body
                if fields.get("halt", "0") not in ("", "0"):
                    break
        return {"result": php(results), "result_error": php(errors), "result_total": [],
                "result_next": [], "result_time": php(times)}

    def sender_add(self, user, fields):
        """messageservice.sender.add: administrators only, a CODE once."""
        sender = sender_fields(user, fields)
        for name in ("NAME", "TYPE", "HANDLER"):
            if not any(field.split("[")[0] == name and text for field, text in sender.items()):
                raise RestError("ERROR_SENDER_VALIDATION_FAILURE", f"{name} is empty")
        check_sender(sender)
        if sender["CODE"] in self.senders:
            raise RestError("ERROR_SENDER_ALREADY_INSTALLED", "Sender already installed!")
        self.senders[sender["CODE"]] = sender
        return True

    def sender_update(self, user, fields):
        """messageservice.sender.update: the fields of add, those that are to change."""
        sender = self.known_sender(user, fields)
        check_sender(sender)
        self.senders[sender["CODE"]].update(sender)
        return True

    def sender_delete(self, user, fields):
        del self.senders[self.known_sender(user, fields)["CODE"]]
        return True

    def known_sender(self, user, fields):
        sender = sender_fields(user, fields)
        if sender["CODE"] not in self.senders:
            raise RestError("ERROR_SENDER_NOT_FOUND", "Sender not found!")
        return sender

    def sender_list(self, user, fields):
        """messageservice.sender.list: the CODEs, as strings."""
        return list(self.senders)

    def status_update(self, user, fields):
        """messageservice.message.status.update: by CODE and MESSAGE_ID, in either case of names.

        The author of the message or an administrator may report its status.
        """
        code, message_id, status = (fields.get(name) or fields.get(name.lower(), "")
                                    for name in ("CODE", "MESSAGE_ID", "STATUS"))
        check_code(code)
        message = self.messages.get(message_id)
        if not message or message["code"] != code:
            raise RestError("ERROR_MESSAGE_NOT_FOUND", "Message not found!")
        if not user["ADMIN"] and user["ID"] != message["author"]:
            raise RestError("ACCESS_DENIED", "Access denied!", 403)
        if status not in STATUSES:
            raise RestError("ERROR_MESSAGE_STATUS_INCORRECT", "Message status incorrect!")
        message["status"] = status
        message["history"].append(status)
        return True

    def event_bind(self, user, fields):
        """ "event.bind": one handler of one event once; a second time is an error."""
        administrator(user)
        event, handler = fields.get("event", "").upper(), fields.get("handler", "")
        if event not in EVENTS:
            raise RestError("ERROR_EVENT_NOT_FOUND", "Event not found")
        check_handler(handler)
        binding = {"event": event, "handler": handler}
        if binding in self.bindings:
            raise RestError(self.binding_error,
                            "Unable to set event handler: Handler already binded")
        self.bindings.append(binding)
        return True

    def event_unbind(self, user, fields):
        """ "event.unbind": a handler of an event; says how many went."""
        administrator(user)
        old = {"event": fields.get("event", "").upper(), "handler": fields.get("handler", "")}
        if not all(old.values()):
            raise RestError("ERROR_ARGUMENT", "event and handler are required")
        stay = [one for one in self.bindings if one != old]
        count, self.bindings = len(self.bindings) - len(stay), stay
        return {"count": count}

    def event_get(self, user, fields):
        return [{**one, "auth_type": "0", "offline": "0"} for one in self.bindings]


METHODS = {
    "profile": Portal.profile, "batch": Portal.batch, "event.bind": Portal.event_bind,
    "event.unbind": Portal.event_unbind, "event.get": Portal.event_get,
    "messageservice.sender.add": Portal.sender_add,
    "messageservice.sender.update": Portal.sender_update,
    "messageservice.sender.delete": Portal.sender_delete,
    "messageservice.sender.list": Portal.sender_list,
    "messageservice.message.status.update": Portal.status_update}


def php(mapping):
    """Encode a map as PHP does: empty, or with keys 0..n in order, it is a list."""
    if list(mapping) == [str(number) for number in range(len(mapping))]:
        return list(mapping.values())
    return mapping


def administrator(user):
    if not user["ADMIN"]:
        raise RestError("ACCESS_DENIED", "Access denied!", 403)


def check_code(code):
    if not re.fullmatch(r"[A-Za-z0-9._-]+", code):
        raise RestError("ERROR_SENDER_VALIDATION_FAILURE", "CODE is empty or has wrong characters")


def sender_fields(user, fields):
    """Take the sender's own fields out of a request; NAME[ru] stays flat.

    As in the portal's own module, a NAME that is one text loses a DESCRIPTION in languages.
    """
    administrator(user)
    lost = [name for name in fields if name.startswith("DESCRIPTION[") and "NAME" in fields]
    sender = {name: text for name, text in fields.items() if name not in ("auth", *lost)}
    check_code(sender.get("CODE", ""))
    return sender


def check_sender(sender):
    if sender.get("TYPE", "SMS") != "SMS":
        raise RestError("ERROR_SENDER_VALIDATION_FAILURE", "Unknown TYPE of sender")
    if "HANDLER" in sender:
        check_handler(sender["HANDLER"])


def check_handler(url):
    """A handler is an http or https address whose host has a dot."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise RestError("ERROR_UNSUPPORTED_PROTOCOL", "Unsupported protocol of the handler")
    if "." not in (parts.hostname or ""):
        raise RestError("ERROR_WRONG_HANDLER_URL", "Wrong handler URL")
