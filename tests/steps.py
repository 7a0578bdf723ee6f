"""What tests do and look at, in one place: send a message, make a pass, see where a message lies.

They see the queue as its folders of files, move time by changing mtimes between passes, and make
the operator slow or silent.
"""
import fcntl
import json
import os
import threading
import time
from contextlib import suppress

import requests
from bottle import SimpleTemplate
from pretend import ADMINISTRATOR, GOOD_KEY, ROOT, install, until

FOLDERS = ("new", "sending", "sent", "failed")  # how far a message is; the later one counts
PHONE, NUMBER = "+7 (925) 507-06-02", "79255070602"
HOUR, DAY = 3600, 24 * 3600
NOTHING = {"sent": 0, "delivered": 0, "undelivered": 0, "failed": 0, "waiting": 0, "errors": {}}


def texts(lang):
    """What the pages say in this language, as views/texts.tpl has it: {name or error code: text}."""
    told = SimpleTemplate(name="texts.tpl", lookup=[str(ROOT / "views")])
    env = told.execute([], {"ru": lang == "ru"})
    return {**env["says"], **env["t"]}


def code_of(world):
    """The CODE of the provider that the app registered."""
    return next(iter(world.portal.senders))


def handler_url(world, app=None):
    """The address that the app registered at the portal, at another process of it if asked for."""
    url = world.portal.senders[code_of(world)]["HANDLER"]
    return url if app is None else url.replace(world.portal.app_url, app.url)


def one_pass(world, app=None):
    """One pass over HTTP; its totals."""
    url = handler_url(world, app).replace("/handler?", "/statuses?")
    answer = requests.get(url, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(world, text, to=PHONE, **more):
    """The portal calls the handler; returns the message_id."""
    message_id, status = world.portal.send_message(to, text, code=code_of(world), **more)
    assert status == 200
    return message_id


def send_many(world, texts, connections=16):
    """The portal calls the handler for all of these at once; [(message_id, HTTP status)]."""
    messages = [(PHONE, text, False, None, code_of(world)) for text in texts]
    return world.portal.send_many(messages, connections)


def work_off(world):
    """Passes, every pause between them over, until nothing waits."""
    def done():
        make_due(world.app)
        one_pass(world)
        return not world.app.queue()
    until(done, 30, "messages stay in the queue")


# Where a message is ------------------------------------------------------------------------------

def folder_of(app, message_id):
    """The name of the last folder that has the message, None if it is gone."""
    found = [one for one in FOLDERS if (app.data / "queue" / one / f"{message_id}.json").exists()]
    return found[-1] if found else None


def path_of(app, message_id, folder=None):
    """Its file, in the folder where it is now if none is named."""
    folder = folder or folder_of(app, message_id) or "new"
    return app.data / "queue" / folder / f"{message_id}.json"


def read(app, message_id):
    """The message as it lies on disk; it may move on while one looks."""
    for _ in range(20):
        with suppress(FileNotFoundError):
            return json.loads(path_of(app, message_id).read_text("utf-8"))
    raise FileNotFoundError(message_id)


def stored(app):
    """What waits: {message_id: the file's JSON}."""
    found = {}
    for path in app.queue():
        with suppress(FileNotFoundError):
            found[path.stem] = read(app, path.stem)
    return found


def change(app, message_id, **news):
    """Rewrite a waiting message between two passes, and make it due."""
    path = path_of(app, message_id)
    path.write_text(json.dumps({**read(app, message_id), **news}), "utf-8")
    make_due(app, message_id)


def make_due(app, *message_ids):
    """Let the pauses of these messages, or of all, be over; sending rests no more."""
    paths = [path_of(app, one) for one in message_ids] or app.queue()
    for path in [*paths, app.data / "send.lock"]:
        with suppress(FileNotFoundError):
            os.utime(path, (time.time() - 60,) * 2)


def pause(app, message_id):
    """How many seconds from now the message is due."""
    return path_of(app, message_id).stat().st_mtime - time.time()


def rests(app):
    """How many seconds from now sending goes on."""
    return (app.data / "send.lock").stat().st_mtime - time.time()


def idle(app):
    """Wait until nobody sends: what happens after that is the test's own doing."""
    def free():
        with open(app.data / "send.lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True
    until(free, 60, "somebody still sends")


def end_rest(app):
    """The rest is over, and nothing else: each message keeps its own pause."""
    os.utime(app.data / "send.lock", (1, 1))


def rested(app):
    """Wait until sending rests, and whoever met the trouble has ended."""
    until(lambda: rests(app) > 0, message="sending does not rest")
    idle(app)


def lay(world, folder, message_id, text="laid down", **news):
    """Lay a message down in a folder, as a killed process leaves it; the portal knows it, too."""
    message = {"message_id": message_id, "to": PHONE, "text": text, "received": time.time(),
               "in_doubt": False, "operator_id": "", "sent_at": 0, "status": "", **news}
    path_of(world.app, message_id, folder).write_text(json.dumps(message), "utf-8")
    world.portal.messages[message_id] = {
        "to": PHONE, "body": text, "code": code_of(world), "status": "sent",
        "history": ["sent"], "author": ADMINISTRATOR}
    return message_id


def unsent(world, *texts):
    """Messages that the operator hasn't got, due now; their ids, in this order."""
    ids = [lay(world, "new", f"unsent-{text or 'empty'}", text, to=f"+7900000{number:04}")
           for number, text in enumerate(texts)]
    for number, message_id in enumerate(ids):
        os.utime(path_of(world.app, message_id), (time.time() - 1000 + number,) * 2)
    return ids


def on_its_way(world, *texts):
    """Messages that the operator has, due now; their ids."""
    ids = [send(world, text, f"+7911000{number:04}") for number, text in enumerate(texts)]
    settled(world.app, *ids)
    idle(world.app)
    make_due(world.app, *ids)
    return ids


def forget(app):
    """Nothing waits, sending rests no more, and the log is empty; its file stays, it is open."""
    for path in (app.data / "queue").rglob("*.*"):
        if path.is_file():
            path.unlink(missing_ok=True)
    for path in (app.data / "logs").iterdir():
        os.truncate(path, 0)
    make_due(app)


# What happened -----------------------------------------------------------------------------------

def logged(app, kind, message_id=None):
    """The log's lines of one type, about one message if asked for."""
    lines = [json.loads(line) for path in sorted((app.data / "logs").glob("*.log"))
             for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines
            if line["type"] == kind and message_id in (None, line.get("message_id"))]


def outcomes(app, message_id):
    """What became of each try to send this message, in their order."""
    return [line["outcome"] for line in logged(app, "send", message_id)]


def doubted(app, message_id):
    """Say whether the log calls this message in doubt."""
    return "in doubt" in outcomes(app, message_id)


def tried(app, message_id, times=1):
    """Wait until so many tries to send this message are over, and their outcome is on disk."""
    until(lambda: len(outcomes(app, message_id)) >= times
          and folder_of(app, message_id) not in (None, "sending"), message="it was not tried")


def settled(app, *message_ids):
    """Wait until the operator has these messages, and that is on disk."""
    until(lambda: all(folder_of(app, one) == "sent" for one in message_ids),
          message="it was not sent")


def received(world, text):
    """How often the operator accepted this text."""
    return sum(one["msg"] == text for one in world.smsru.sent)


def history(world, message_id):
    return world.portal.messages[message_id]["history"]


def calls(party, path):
    """The fields of every request for this path, in their order."""
    return [fields for asked, fields in party.requests if asked.endswith(path)]


# Trouble -----------------------------------------------------------------------------------------

def page(status):
    """The trouble of a party that answers everything with a proxy's page."""
    return lambda method, path, fields: (status, f"<html><title>{status}</title></html>", {})


class Gate:
    """Holds the requests for one path until it is opened; `asked` says which came so far."""

    def __init__(self, party, path):
        self.path, self.asked, self.open = path, [], threading.Event()
        party.trouble = self

    def __call__(self, method, path, fields):
        if path.endswith(self.path):
            self.asked.append(fields)
            self.open.wait(20)


def cut(world, times):
    """The operator accepts, and the line breaks before its answer, so many times."""
    left = list(range(times))

    def trouble(method, path, fields):
        if path == "/sms/send" and left:
            left.pop()
            world.smsru.send(path, fields)
            raise ConnectionResetError
    world.smsru.trouble = trouble


def another(world, **env):
    """A second process of the app, on the same DATA_DIR."""
    return world.new_app(**{"DATA_DIR": world.app.data, "RETRY_AFTER": 0.2, "STATUSES_EVERY": 0,
                            **env}).start()


def reset(world):
    """Make a used world as good as new: nothing installed, nothing in trouble, nothing waiting."""
    portal, smsru = world.portal, world.smsru
    for party in (portal, world.oauth, smsru):
        party.trouble = None
        if party.server is None:
            party.start()
    until(lambda: not list((world.app.data / "queue" / "sending").iterdir()),
          message="a message of the test before is still under way")
    (world.app.data / "settings.json").unlink(missing_ok=True)
    forget(world.app)
    portal.senders, portal.bindings, portal.installed = {}, [], False
    portal.binding_error = "ERROR_EVENT_BINDING_EXISTS"
    portal.users[ADMINISTRATOR]["active"] = True
    smsru.down, smsru.refuse, smsru.delay, smsru.keys = False, None, 1.0, {GOOD_KEY}
    for used in (smsru.sent, smsru.requests, portal.requests, world.oauth.requests):
        used.clear()
    return world


def fresh(world):
    """An installed world without trouble, its queue and log empty; what is sent arrives at once."""
    operator, portal = world.smsru, world.portal
    operator.down, operator.refuse, operator.balance, operator.delay = False, None, 1000.0, 0
    operator.trouble = portal.trouble = None
    operator.codes, operator.delivery, operator.slow, operator.keys = {}, {}, 0, {GOOD_KEY}
    operator.error_ids = False
    for party in (operator, portal):
        if not party.server:
            party.start()
    idle(world.app)
    if not portal.installed:
        assert install(world).status_code == 200
    for party in (operator, portal):
        party.requests.clear()
    operator.sent.clear()
    forget(world.app)
    return world


def installed_app(world, **env):
    """The app started with these variables and installed by an administrator."""
    app = world.start_app(**{"STATUSES_EVERY": 0, **env})
    assert install(world).status_code == 200
    return app


def told(world, message_id):
    """Make passes until the portal is told the final status. Out: all that it was told."""
    history = world.portal.messages[message_id]["history"]

    def news():
        make_due(world.app)
        one_pass(world)
        return history[1:]
    until(news, message="the portal was not told")
    return history
