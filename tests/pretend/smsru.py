"""A pretend SMS.ru, faithful to the operator's API page (https://sms.ru/api).

One key opens everything. Only POST with the key in the body is understood here: keys in URLs end
up in access logs, so a client that puts it there must fail its tests.
"""
import re
import threading
import time

from .wire import Party

GOOD_KEY = "11111111-2222-3333-4444-555555555555"
COST = 0.5
MOST = 100  # numbers in one /sms/send, ids in one /sms/status
TEXTS = {
    -1: "no such message", 100: "queued", 102: "on its way", 103: "delivered", 104: "expired",
    105: "deleted by the operator", 106: "phone failure", 107: "reason unknown", 108: "rejected",
    110: "read", 150: "no route", 200: "wrong api_id", 201: "not enough money", 202: "bad number",
    203: "no text", 205: "text too long", 206: "daily limit", 207: "no route to this number",
    220: "service unavailable", 230: "too many messages to this number today",
    231: "same text to this number within a minute", 232: "same text to this number today",
    300: "wrong token", 301: "wrong password", 302: "account not confirmed", 500: "server error"}


def refusal(code):
    return {"status": "ERROR", "status_code": code, "status_text": TEXTS.get(code, "refused")}


class SmsRu(Party):
    """The operator. Tests turn its switches; `sent` is what it accepted, oldest first."""

    name = "operator"

    def __init__(self, wire=None, port=0):
        super().__init__(wire, port)
        self.keys = {GOOD_KEY}
        self.balance = 1000.0        # below the price of one message every entry gets code 201
        self.sent = []               # {"to", "msg", "sms_id", "time", "test"}
        self.down = False            # True: a proxy's 503 page instead of JSON
        self.refuse = None           # a code that refuses the whole request
        self.codes = {}              # number → code of its entry in /sms/send
        self.error_ids = False       # True: an ERROR entry carries an sms_id, as it may
        self.delivery = {}           # number → final code, 103 unless told otherwise
        self.delay = 1.0             # seconds on the way: 100, then 102, then the final code
        self.slow = 0                # seconds of silence after a message was accepted
        self.check_repeats = False   # True: same text to the same number → 231
        self.repeat_window = 60
        self.clock = time.time
        self.lock = threading.RLock()
        self.hurry = threading.Event()

    def start(self):
        self.hurry.clear()
        return super().start()

    def stop(self):
        self.hurry.set()
        super().stop()

    def answer(self, method, path, fields, request):
        """Dispatch as the API page lists its calls; without json=1 the answer is a bare code."""
        if self.down:
            return 503, "<html><title>503 Service Unavailable</title></html>", {}
        calls = {"/auth/check": self.check, "/my/balance": self.check,
                 "/sms/send": self.send, "/sms/status": self.status}
        if path not in calls:
            return 404, "<html><title>404 Not Found</title></html>", {}
        if method != "POST" or request.form.get("api_id") not in self.keys:
            result = refusal(200)
        elif self.refuse is not None:
            # Recorded refusals come without `sms`, `balance` and even `status_text`.
            result = {"status": "ERROR", "status_code": self.refuse}
        else:
            with self.lock:
                result = calls[path](path, request.form)
            if self.slow and result.get("sms") and path == "/sms/send":
                self.hurry.wait(self.slow)
        if fields.get("json") != "1":
            return 200, f"{result['status_code']}\n", {"Content-Type": "text/plain"}
        return 200, result, {}

    def check(self, path, fields):
        """/auth/check and /my/balance: https://sms.ru/api/auth_check, /api/balance."""
        money = {"balance": self.balance} if path == "/my/balance" else {}
        return {"status": "OK", "status_code": 100, **money}

    def send(self, path, fields):
        """https://sms.ru/api/send: `to`+`msg`, or `to[PHONE]=TEXT`; top-level OK says little.

        A PHP server keeps the last of two equal names, so a number given twice gets one text.
        """
        texts = {name[3:-1]: text for name, text in fields.items()
                 if name.startswith("to[") and name.endswith("]")}
        if "to" in fields:
            numbers = [number.strip() for number in fields["to"].split(",")]
            texts.update(dict.fromkeys(numbers, fields.get("msg", "")))
        if not texts:
            return refusal(202)
        if len(texts) > MOST:
            return refusal(207)
        test = fields.get("test") == "1"
        entries = {number: self.accept(number, text, test) for number, text in texts.items()}
        return {"status": "OK", "status_code": 100, "sms": entries, "balance": self.balance}

    def accept(self, number, text, test):
        """Take one message or say in its own entry why not."""
        code, now = self.codes.get(number, 100), self.clock()
        if not re.fullmatch(r"\d{10,15}", number):
            code = 202
        elif not text.strip():
            code = 203
        elif self.balance < COST and not test:
            code = 201
        elif self.check_repeats and any(
                (one["to"], one["msg"]) == (number, text) and now - one["time"] < self.repeat_window
                for one in self.sent):
            code = 231
        # A test message is only imitated and its id is not unique.
        sms_id = "000000-10000000" if test else f"202647-{1000001 + len(self.sent)}"
        if code != 100:
            return {**refusal(code), **({"sms_id": sms_id} if self.error_ids else {})}
        self.balance -= 0 if test else COST
        self.sent.append({"to": number, "msg": text, "sms_id": sms_id, "time": now, "test": test})
        return {"status": "OK", "status_code": 100, "sms_id": sms_id}

    def status(self, path, fields):
        """https://sms.ru/api/status: entry OK only means that the message was found."""
        ids = [one.strip() for one in fields.get("sms_id", "").split(",") if one.strip()]
        if not ids or len(ids) > MOST:
            return refusal(207)
        known = {one["sms_id"]: one for one in self.sent}
        entries = {}
        for sms_id in ids:
            code = self.progress(known[sms_id]) if sms_id in known else -1
            entries[sms_id] = {"status": "ERROR" if code == -1 else "OK", "status_code": code,
                               "cost": COST, "status_text": TEXTS.get(code, "")}
            if code == -1:
                del entries[sms_id]["cost"]
        return {"status": "OK", "status_code": 100, "sms": entries, "balance": self.balance}

    def progress(self, message):
        """Where a message is by now: queued, on its way, or at its end."""
        age = self.clock() - message["time"]
        if age < self.delay:
            return 100 if age < self.delay / 2 else 102
        return self.delivery.get(message["to"], 103)
