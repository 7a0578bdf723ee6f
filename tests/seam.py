"""A fork's operators, the servers that they call, and the app started with one of them.

The classes stand in a script of their own and are put in app.py's place for operators, as README
says: one does what a test orders, one is like SMSC, one is like Telegram.
"""
import json

from pretend import ROOT, World
from pretend.wire import Party
from steps import forget

RETRY_AFTER = 60  # seconds
TOKEN = "bot4711:AAF-token-in-an-address"
LAUNCHER = '''"""A fork's operators and its start."""
import json
import os
import re
import sys

sys.path.insert(0, os.environ["ROOT"])
import app

URL, TOKEN = os.environ["URL"], os.environ["TOKEN"]


def seen(*what):
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps(what) + "\\n")


def boom():
    raise RuntimeError(f"no answer from {URL}/{TOKEN}/send for you")


class Obedient:
    """Answers what the test ordered: an expression for each call."""

    FIELDS = ({"name": "mood", "en": ("Mood", "Any"), "ru": ("Настроение", "Любое")},)

    def obey(call, **given):
        seen(call, given)
        with open(os.environ["ORDERS"]) as file:
            return eval(json.load(file)[call], {**globals(), **given})

    def check(settings):
        return Obedient.obey("check", settings=settings)

    def send(settings, message):
        return Obedient.obey("send", settings=settings, message=message)

    def statuses(settings, ids):
        return Obedient.obey("statuses", settings=settings, ids=ids)


class Smsc:
    """A login and a password, JSON of its own kinds or text; asked by number and id together."""

    FIELDS = ({"name": "login", "en": ("Login", "of smsc"), "ru": ("Логин", "на smsc")},
              {"name": "password", "secret": True,
               "en": ("Password", "of smsc"), "ru": ("Пароль", "на smsc")},
              {"name": "sender", "en": ("Sender", "if any"), "ru": ("Отправитель", "если есть")})
    CODES = {2: "key", 3: "money", 9: "busy"}

    def request(path, settings, **fields):
        seen("settings", settings)
        status, answer = app.post(URL + path, data={
            "login": settings["login"], "psw": settings["password"], **fields})
        if status != 200:
            return {0: "down", 429: "busy", 503: "down"}.get(status, "in doubt"), status
        if isinstance(answer, dict) and "error_code" in answer:
            return Smsc.CODES.get(answer["error_code"], "failed"), answer["error_code"]
        return "", answer

    def check(settings):
        trouble, balance = Smsc.request("/balance", settings)
        return trouble, balance

    def send(settings, message):
        to = re.sub(r"\\D", "", message["to"])
        trouble, answer = Smsc.request("/send", settings, phones=to, mes=message["text"])
        if trouble:
            return trouble, answer
        good, _, number = answer.partition(";")
        return ("sent", f"{to}:{number}") if good == "OK" else ("in doubt", "no sense")

    def statuses(settings, ids):
        trouble, answer = Smsc.request("/status", settings, ids=",".join(ids))
        words = {1: "delivered", 20: "undelivered"}
        return trouble, {f"{one['phone']}:{one['id']}": words.get(one["status"])
                         for one in answer or []}


class Telegram:
    """A token in the address, keys named error that mean nothing, no receipts."""

    FIELDS = ({"name": "token", "secret": True, "en": ("Token", "of the bot"),
               "ru": ("Токен", "бота")},)

    def request(name, settings, **fields):
        status, answer = app.post(f"{URL}/{settings['token']}/{name}", json=fields)
        if status == 200 and answer["ok"]:
            return "", answer["result"]
        return {0: "down", 401: "key", 429: "busy", 503: "down"}.get(status, "in doubt"), status

    def check(settings):
        return Telegram.request("getMe", settings)

    def send(settings, message):
        trouble, answer = Telegram.request("sendMessage", settings, chat_id=message["to"],
                                           text=message["text"])
        return (trouble, answer) if trouble else ("sent", answer["message_id"])

    def statuses(settings, ids):
        seen("ids", ids)
        return "", dict.fromkeys(ids, "sent")


app.OPERATORS.update(obedient=Obedient, smsc=Smsc, telegram=Telegram)
app.SMS_OPERATOR = os.environ["FORK"]
app.OPERATOR = app.OPERATORS[app.SMS_OPERATOR]
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
'''
OBEY = {"check": "('', '')", "send": "('sent', 'an-id')", "statuses": "('', {})"}


class Seam(World):
    """A world whose app runs with an operator of a fork's own, and that operator's server."""

    def __init__(self, folder, operator, party):
        super().__init__()
        self.party, self.operator = party(self.wire), operator
        self.seen_file, self.orders = folder / "seen", folder / "orders"
        self.script = folder / "my_operator.py"
        self.script.write_text(LAUNCHER, "utf-8")

    def start(self):
        super().start()
        self.party.start()
        self.fresh_orders()
        self.start_fork(self.operator)
        return self

    __enter__ = start

    def start_fork(self, operator, **env):
        """Start the app with one of these operators, and tell the portal where it is."""
        self.app = self.new_app(
            SMS_OPERATOR=None, RETRY_AFTER=RETRY_AFTER, STATUSES_EVERY=0, ROOT=ROOT, TOKEN=TOKEN,
            FORK=operator, URL=self.party.url, SEEN=self.seen_file, ORDERS=self.orders, **env)
        self.app.script = self.script
        self.portal.app_url = self.app.start().url

    def stop(self):
        super().stop()
        self.party.stop()

    def order(self, **orders):
        self.orders.write_text(json.dumps({**OBEY, **orders}), "utf-8")

    def seen(self, what):
        """What the operator's class was given, of this kind, in its order."""
        lines = [json.loads(line) for line in self.seen_file.read_text("utf-8").splitlines()]
        return [line[1] for line in lines if line[0] == what]

    def saved(self):
        return json.loads((self.app.data / "settings.json").read_text("utf-8"))

    def written(self):
        """All that the app wrote for people to read."""
        return self.app.output() + (self.app.data / "logs" / "app.log").read_text("utf-8")

    def fresh_orders(self):
        self.order()
        self.seen_file.write_text("")

    def fresh(self):
        """Nothing waits, nothing was seen, all goes well."""
        forget(self.app)
        self.fresh_orders()
        self.party.trouble = None
        self.party.requests.clear()
        return self


class Mouth(Party):
    """Says whatever the test puts into its mouth; remembers how it was asked."""

    says = 200, b"", {}

    def answer(self, method, path, fields, request):
        self.asked = method, self.requests[-1], dict(request.headers)
        return self.says


class SmscServer(Party):
    """Answers texts, numbers and lists; refuses with 200 and a code."""

    name = "operator"
    login, password = "acme", "a-password-to-keep"

    def answer(self, method, path, fields, request):
        if (fields["login"], fields["psw"]) != (self.login, self.password):
            return 200, {"error": "authorise error", "error_code": 2}, {}
        if path == "/balance":
            return 200, "100.50", {}
        if path == "/send":
            return 200, "OK;1234", {}
        pairs = [one.split(":") for one in fields["ids"].split(",")]
        return 200, [{"phone": to, "id": number, "status": 1} for to, number in pairs], {}


class TelegramServer(Party):
    """Its answers have a key named error, whatever they say."""

    name = "operator"

    def answer(self, method, path, fields, request):
        if not path.startswith(f"/{TOKEN}/"):
            return 401, {"ok": False, "error": "Unauthorized", "result": None}, {}
        return 200, {"ok": True, "error": None, "result": {"message_id": 77}}, {}
