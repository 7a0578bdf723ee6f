"""Another operator, Twilio: python tests/forks/twilio_operator.py [statuses | checkserver]

Three fields instead of one key, a request a message, a question an id. A fork of your own has the
class in app.py beside SmsRu, and its name in OPERATORS."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import app

URL = app.env("TWILIO_URL", "https://api.twilio.com").rstrip("/") + "/2010-04-01/Accounts/"
CODES = {**dict.fromkeys((20003, 20005, 20008, 21212, 21603, 21606, 21659, 21660), "key"),
         63038: "limit", 20429: "down", 21611: "down"}
STATUSES = {**{one: one for one in app.FINAL}, "read": "delivered", "canceled": "failed"}


class Twilio:
    FIELDS = ({"name": "account_sid", "en": ("Account SID", "AC..., from the Twilio Console"),
               "ru": ("Account SID", "AC..., из Twilio Console")},
              {"name": "auth_token", "en": ("Auth token", "Below it"), "ru": ("Auth token", "Под ним")},
              {"name": "from_number", "en": ("Sender", "A number of this account, +1..."),
               "ru": ("Отправитель", "Номер из этого аккаунта, +1...")})

    def request(settings, path, fields=None, method="GET", unsure="down"):
        """Out: ("", Twilio's JSON) or (what is in the way, Twilio's code)"""
        sid, token = settings.get("account_sid", ""), settings.get("auth_token", "").encode()
        if not re.fullmatch("AC[0-9a-f]{32}", sid):
            return "key", ""
        status, answer = app.post(f"{URL}{sid}{path}.json", fields, method, auth=(sid, token))
        if answer.get("error") == "no_answer":  # it may have got through
            return unsure, ""
        code = answer.get("code")  # without it, it is not Twilio who answers
        other = "failed" if code and 400 <= status < 500 else "down"
        return ("", answer) if 200 <= status < 300 else (CODES.get(code, other), str(code))

    def check(settings):
        trouble, answer = Twilio.request(settings, "")
        good = trouble or answer.get("status") == "active" and settings.get("from_number")
        return trouble if good else "key", ""

    def send(settings, message):
        to = "+" + re.sub(r"^8(?=\d{10}$)", "7", re.sub(r"\D", "", message["to"]))
        fields = {"To": to, "From": settings.get("from_number"), "Body": message["text"]}
        trouble, answer = Twilio.request(settings, "/Messages", fields, "POST", "in doubt")
        return (trouble, answer) if trouble else ("sent", answer.get("sid"))

    def statuses(settings, ids):
        found = {}
        for one in ids:
            trouble, answer = Twilio.request(settings, f"/Messages/{one}")
            if trouble not in ("", "failed"):  # the account's; an unknown id is its own
                return trouble, found
            found[one] = "" if trouble else STATUSES.get(answer.get("status"), "")
        return "", found


app.OPERATOR, app.SMS_OPERATOR, application = Twilio, "twilio", app.application
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
