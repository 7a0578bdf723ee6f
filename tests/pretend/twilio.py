"""A pretend Twilio, faithful to https://www.twilio.com/docs/messaging/api (2010-04-01).

Basic authorization with account SID and token; one message a POST, one message's state a GET.
"""
import base64
import re
import threading
import time

from .wire import Party

SID, TOKEN, NUMBER = "AC" + "0123456789abcdef" * 2, "f" * 28 + "cafe", "+15005550006"
KEYS = {"account_sid": SID, "auth_token": TOKEN, "from_number": NUMBER}
BASE = f"/2010-04-01/Accounts/{SID}"


def refusal(status, code):
    return status, {"code": code, "message": f"Trouble {code}", "status": status,
                    "more_info": f"https://www.twilio.com/docs/errors/{code}"}, {}


class Twilio(Party):
    """The operator. Tests turn its switches; `sent` is what it accepted, oldest first."""

    name = "twilio"

    def __init__(self, wire=None, port=0):
        super().__init__(wire, port)
        self.account = "active"   # or "suspended"
        self.refuse = None        # (HTTP status, code) that refuses every message
        self.delivery = {}        # number → final status, "delivered" unless told otherwise
        self.delay = 0            # seconds on the way
        self.sent = []            # {"to", "from", "body", "sid", "time"}
        self.lock = threading.Lock()

    def answer(self, method, path, fields, request):
        given = request.headers.get("Authorization", "")
        if given != "Basic " + base64.b64encode(f"{SID}:{TOKEN}".encode()).decode():
            return refusal(401, 20003)
        if (method, path) == ("GET", BASE + ".json"):
            return 200, {"sid": SID, "status": self.account, "type": "Full"}, {}
        if (method, path) == ("POST", BASE + "/Messages.json"):
            with self.lock:
                return self.accept(request.form)
        message = re.fullmatch(BASE + r"/Messages/(SM[0-9a-f]{32})\.json", path)
        known = {one["sid"]: one for one in self.sent}
        if method != "GET" or not message or message[1] not in known:
            return refusal(404, 20404)
        return 200, self.resource(known[message[1]]), {}

    def accept(self, fields):
        """Take one message, "queued", or say why not."""
        if self.refuse:
            return refusal(*self.refuse)
        if fields.get("From") != NUMBER:
            return refusal(400, 21606)
        if not re.fullmatch(r"\+\d{10,15}", fields.get("To", "")):
            return refusal(400, 21211)
        self.sent.append({"to": fields["To"], "from": fields["From"], "body": fields["Body"],
                          "sid": f"SM{len(self.sent):032x}", "time": time.time()})
        return 201, self.resource(self.sent[-1], "queued"), {}

    def resource(self, message, status=None):
        if not status:
            over = time.time() - message["time"] >= self.delay
            status = self.delivery.get(message["to"], "delivered") if over else "sent"
        return {"sid": message["sid"], "status": status, "error_code": None, "num_segments": "1",
                "to": message["to"], "from": message["from"], "direction": "outbound-api"}
