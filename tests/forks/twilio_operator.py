"""Another operator, Twilio: python tests/forks/twilio_operator.py [statuses | checkserver]
Three fields instead of one key, a request a message, a question an id. In a fork of your own the
class stands in app.py beside SmsRu, its name in OPERATORS; here SMS_OPERATOR stays unset."""
import re
import sys

sys.path.insert(0, __file__.rpartition("/tests/")[0])
import app

URL = app.env("TWILIO_URL", "https://api.twilio.com").rstrip("/") + "/2010-04-01/Accounts/"
TROUBLE = {**dict.fromkeys((20003, 20005, 20008, 21212, 21603, 21606, 21659, 21660), "key"),
           63038: "limit", 20429: "busy", 21611: "busy"}  # its codes; any other: "failed"
STATUSES = {"delivered": "delivered", "read": "delivered", "undelivered": "undelivered",
            "failed": "failed", "canceled": "failed"}  # its "sent" is still under way


class Twilio:
    FIELDS = ({"name": "account_sid", "en": ("Account SID", "AC…"), "ru": ("Account SID", "AC…")},
              {"name": "auth_token", "secret": True,
               "en": ("Auth token", "Twilio Console"), "ru": ("Auth token", "Twilio Console")},
              {"name": "from_number", "en": ("Sender", "+1…"), "ru": ("Отправитель", "+1…")})

    def request(settings, path, method="GET", **fields):
        """Out: "" and what Twilio has under a sid, or what is in the way and its code."""
        sid, token = settings["account_sid"], settings["auth_token"].encode()
        if not re.fullmatch("AC[0-9a-f]{32}", sid):
            return "key", ""
        status, answer = app.post(f"{URL}{sid}{path}.json", method, data=fields, auth=(sid, token))
        answer = app.mapping(answer)
        if status in (200, 201) and "sid" in answer:
            return "", answer
        code = answer.get("code")
        if 400 <= status < 500:  # refused; without a code, by somebody in Twilio's place
            return TROUBLE.get(code, "failed" if code else "down"), code
        return app.HTTP_SAYS.get(status, "in doubt"), code or status

    def check(settings):
        trouble, account = Twilio.request(settings, "")
        usable = not trouble and account["status"] == "active" and settings["from_number"]
        return trouble or ("" if usable else "key"), ""

    def send(settings, message):
        to = "+" + re.sub(r"^8(?=\d{10}$)", "7", re.sub(r"\D", "", message["to"]))
        trouble, answer = Twilio.request(settings, "/Messages", "POST", To=to,
                                         From=settings["from_number"], Body=message["text"])
        return (trouble, answer) if trouble else ("sent", answer["sid"])

    def statuses(settings, ids):
        found = {}
        for one in ids:
            trouble, answer = Twilio.request(settings, f"/Messages/{one}")
            if trouble not in ("", "failed"):  # the account's; an unknown id is only its own
                return trouble, found
            found[one] = "" if trouble else STATUSES.get(answer["status"])
        return "", found


app.OPERATOR, app.SMS_OPERATOR, application = Twilio, "twilio", app.application
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
