"""Try the app without a Bitrix24 account: python tests/portal.py [--once] [--port N]

Starts a pretend portal, a pretend OAuth server and a pretend SMS.ru, and the app beside them as
users start it; then says where to open the portal's page, and everything else is clicked there.
With --once it plays the tutorial's story without a browser, prints what went over the wire, and
ends: 0 if the story came true, 1 if not. Tests import the classes from here.
"""
import argparse
import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import requests
from bitrix24 import ADMINISTRATOR, EMPLOYEE, Portal
from box import ENV, Box
from oauth import OAuth
from smsru import GOOD_KEY, SmsRu
from wire import Party, Wire, flat, until

__all__ = ["ADMINISTRATOR", "EMPLOYEE", "GOOD_KEY", "App", "Box", "Browser", "OAuth", "Party", "Portal",
           "SmsRu", "Wire", "World", "install", "until"]

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")
PHONE, TEXT = "+7 (925) 507-06-02", "Ваш код подтверждения: 1234"
ROBOT_PHONE, ROBOT_TEXT = "+79990000000", "Заказ № 57 готов, ждём вас до 20:00"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class App:
    """`python app.py` as a process with environment variables, the way users run it.

    `env` overrides variables; None removes one. Several Apps may be given the same DATA_DIR.
    """

    script = ROOT / "app.py"

    def __init__(self, world, **env):
        self.home = tempfile.mkdtemp(prefix="fastsms-")
        self.env = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.env.update(
            PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8",
            C_REST_CLIENT_ID=world.portal.client_id,
            C_REST_CLIENT_SECRET=world.portal.client_secret,
            OAUTH_URL=world.oauth.url, BX24_JS_URL=world.portal.url + "/api/v1/",
            SMS_OPERATOR="smsru", SMSRU_URL=world.smsru.url,
            DATA_DIR=os.path.join(self.home, "data"), HOST="127.0.0.1", PORT=str(free_port()))
        self.env.update(env)
        self.env = {name: str(value) for name, value in self.env.items() if value is not None}
        self.data = Path(self.env["DATA_DIR"])
        self.log = Path(self.home, "output.txt")
        self.process = None
        atexit.register(self.close)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.env['PORT']}/"

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def start(self, seconds=15):
        """Start (again, after a kill, at the same address) and wait until GET / is answered.

        It stays in our process group, so that Ctrl-C in a terminal ends it together with us.
        """
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(self.script)], cwd=str(self.script.parent), env=self.env,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            until(lambda: self.answers() or not self.running, seconds, "the app does not answer")
            assert self.running, f"the app ended with exit code {self.process.returncode}"
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.output()}") from None
        return self

    def answers(self):
        session = requests.Session()
        session.trust_env = False
        try:
            return session.get(self.url, timeout=5, allow_redirects=False).status_code > 0
        except requests.RequestException:
            return False

    def kill(self):
        """SIGKILL: nothing in the process gets a chance to tidy up."""
        if self.running:
            self.process.kill()
        if self.process:
            self.process.wait()

    def stop(self):
        """SIGTERM, five seconds of patience, SIGKILL; returns the exit code."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode if self.process else None

    def close(self):
        """Stop and remove what was thrown together for this process."""
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)
        atexit.unregister(self.close)

    def output(self):
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def run(self, command, seconds=60):
        """Run `python app.py COMMAND` in the same environment: (exit code, standard output)."""
        done = subprocess.run(
            [sys.executable, str(self.script), *command.split()], cwd=str(self.script.parent),
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            check=False)
        with open(self.log, "ab") as output:
            output.write(done.stderr)
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def queue(self):
        """The waiting messages: one JSON file each, in the folders of DATA_DIR/queue."""
        return sorted((self.data / "queue").glob("*/*.json"), key=lambda path: path.name)


class World:
    """Everything around the app: the wire, the three pretend servers, and the apps started."""

    def __init__(self, port=0):
        self.wire = Wire()
        self.oauth = OAuth(self.wire)
        self.portal = Portal(self.wire, self.oauth, port=port)
        self.smsru = SmsRu(self.wire)
        self.app, self.apps, self.portals = None, [], [self.portal]
        self.box = None

    def start(self):
        for party in (self.oauth, self.portal, self.smsru):
            party.start()
        return self

    def new_app(self, **env):
        """Make an App that is not started yet; world.stop() closes it."""
        self.apps.append(App(self, **env))
        return self.apps[-1]

    def start_app(self, **env):
        """Start the app, and tell the portal where it is."""
        self.app = self.new_app(**env).start()
        self.portal.app_url = self.app.url
        return self.app

    def start_box(self, **env):
        """Start the app for a person at a browser, and give the portal its page."""
        self.box = Box(self)
        return self.box.start(self.start_app(**{**ENV, **env}))

    def another_portal(self, **values):
        """Start a second portal beside the first, with a member_id of its own."""
        self.portals.append(Portal(self.wire, self.oauth, **values).start())
        self.portals[-1].app_url = self.portal.app_url
        return self.portals[-1]

    __enter__ = start

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        for app in self.apps:
            app.close()
        for party in (*self.portals, self.oauth, self.smsru, *filter(None, [self.box])):
            party.stop()


class Form(HTMLParser):
    """Reads the form of a page by its id: where it goes, and every named field as it is."""

    def __init__(self, page, form_id="sms-settings"):
        super().__init__()
        self.form_id, self.inside, self.found, self.action = form_id, False, False, None
        self.fields = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form" and attrs.get("id") == self.form_id:
            self.inside = self.found = True
            self.action = attrs.get("action")
        if self.inside and tag in ("input", "textarea", "select") and attrs.get("name"):
            self.fields[attrs["name"]] = attrs.get("value") or ""

    def handle_endtag(self, tag):
        if tag == "form":
            self.inside = False


class Browser:
    """Stands in for the browser and BX24.js: opens the frame, saves, registers, finishes."""

    def __init__(self, world, user=ADMINISTRATOR, portal=None):
        self.world, self.user, self.portal = world, user, portal or world.portal
        self.url = self.form = None

    def open(self, page="install", lang="ru"):
        """Open a page of the app in the portal's frame; remembers its form."""
        self.url, self.frame = self.portal.open_frame(self.user, page, lang)
        answer = self.post(self.url, self.frame)
        self.form = Form(answer.text)
        return answer

    def post(self, url, fields):
        return self.world.wire.post("browser", "app", url, fields,
                                    {"Origin": url.split("/", 3)[0] + "//" + url.split("/")[2]})

    def save(self, **fields):
        """Send the form with the operator's fields filled in, as the page's script does."""
        assert self.form and self.form.found, "the page has no form with id sms-settings"
        url = urljoin(self.url, self.form.action or "save")
        return self.post(url, {**self.form.fields, **fields})

    def call(self, method, params=None):
        """BX24.callMethod: a PHP-encoded form with `auth` first, from the browser, with CORS.

        The portal writes it on the wire; here it only gets sent, marked as the browser's.
        """
        session = requests.Session()
        session.trust_env = False
        fields = {"auth": self.frame["AUTH_ID"], **flat(params or {})}
        return session.post(f"{self.portal.url}/rest/{method}.json", data=fields, timeout=30,
                            headers={"Origin": self.world.portal.app_url.rstrip("/"),
                                     "X-Stand-In": "browser"}).json()

    def register(self, sender):
        """Add the sender; one that is there already has been updated by /save."""
        answer = self.call("messageservice.sender.add", sender)
        fine = answer.get("result") is True or (
            answer.get("error") == "ERROR_SENDER_ALREADY_INSTALLED")
        assert fine, f"the sender was not registered: {answer}"
        return answer

    def finish(self):
        """BX24.installFinish: a message to the portal's page, after which events begin."""
        self.portal.installed = True
        self.world.wire.add("browser", "portal", "postMessage", "setInstallFinish")

    def install(self, **fields):
        """Open, save, register, finish; stops after /save when that was refused."""
        self.open("install")
        answer = self.save(**fields)
        if answer.status_code == 200:
            self.register(answer.json()["sender"])
            self.finish()
        return answer


def install(world, api_key=GOOD_KEY, user=ADMINISTRATOR):
    """Install the app as a person would; returns the answer of /save."""
    return Browser(world, user).install(api_key=api_key)


class Story:
    """The tutorial's story, step by step; a step that does not come true ends it."""

    def __init__(self, world):
        self.world, self.browser = world, Browser(world)
        self.seen, self.ids = 0, []

    def play(self):
        """Play every step; returns True, or False after saying which step did not come true."""
        steps = [self.open, self.save, self.add_sender, self.finish, self.card, self.robot,
                 self.operator, self.statuses, self.delivered, self.empty]
        for number, step in enumerate(steps, 1):
            print(f"\n{number}. {step.__doc__}")
            try:
                step()
                self.show()
            except (AssertionError, requests.RequestException) as error:
                self.show()
                print(f"\nThe story did not come true at step {number} ({step.__name__}): {error}")
                print("The last lines of the app:")
                lines = self.world.app.output().splitlines()[-15:]
                print("\n".join(self.world.wire.mask(line) for line in lines))
                return False
        print("\nThe story came true.")
        return True

    def show(self):
        """Print what went over the wire since the last time, in the order in which it began."""
        news = self.world.wire.since(self.seen)
        self.seen += len(news)
        for exchange in sorted(news, key=lambda one: one["time"]):
            print("   " + self.world.wire.text(exchange))

    def open(self):
        """The portal opens install in a frame; the page asks for the operator's key."""
        answer = self.browser.open("install")
        assert answer.status_code == 200, f"the page answered {answer.status_code}"
        assert self.browser.form.found, "the page has no form with id sms-settings"

    def save(self):
        """The administrator types the key and presses Save; the app checks it and keeps it."""
        self.answer = self.browser.save(api_key=GOOD_KEY)
        assert self.answer.status_code == 200, f"/save: {self.answer.text[:300]}"

    def add_sender(self):
        """The page registers the provider: messageservice.sender.add."""
        sender = self.answer.json()["sender"]
        self.browser.register(sender)
        assert list(self.world.portal.senders) == [sender["CODE"]], "another sender was expected"

    def finish(self):
        """BX24.installFinish ends the installation; the portal opens the main page, index."""
        self.browser.finish()
        assert self.browser.open("index").status_code == 200, "index does not open"

    def card(self):
        """Somebody writes an SMS in a CRM card; the portal calls the handler."""
        self.message(PHONE, TEXT)

    def robot(self):
        """A robot writes another one; nobody's name is under it, so there is no auth."""
        self.message(ROBOT_PHONE, ROBOT_TEXT, robot=True)

    def message(self, to, text, **kind):
        code = next(iter(self.world.portal.senders))
        message_id, status = self.world.portal.send_message(to, text, code=code, **kind)
        self.ids.append(message_id)
        assert status == 200, f"the handler answered {status}"

    def operator(self):
        """The pretend SMS.ru receives both texts."""
        wanted = sorted([(re.sub(r"\D", "", PHONE), TEXT), (ROBOT_PHONE[1:], ROBOT_TEXT)])
        until(lambda: len(self.world.smsru.sent) >= 2, 10, "SMS.ru did not get two messages")
        got = sorted((one["to"], one["msg"]) for one in self.world.smsru.sent)
        assert got == wanted, f"SMS.ru got {got}"
        for one in self.world.smsru.sent:
            print(f"   SMS.ru accepted {one['sms_id']} to {one['to']}: {one['msg']}")

    def statuses(self):
        """Cron's turn: python app.py statuses asks SMS.ru and tells the portal."""
        code, output = self.world.app.run("statuses")
        print("   " + output.strip().replace("\n", "\n   "))
        assert code == 0, f"it ended with exit code {code}"

    def delivered(self):
        """The portal shows both messages as delivered (a pass runs every second)."""
        def history():
            return [self.world.portal.messages[one]["history"] for one in self.ids]
        until(lambda: all(one[-1] == "delivered" for one in history()), 20, "no such status")
        for one, message_id in zip(history(), self.ids):
            print(f"   {message_id}: {' → '.join(one)}")

    def empty(self):
        """The queue is empty: nothing is left to do, and no text is left behind."""
        until(lambda: not self.world.app.queue(), 10, "files are left in the queue")


def goodbye(signum, frame):
    raise KeyboardInterrupt


def play_once(world):
    """Start the app and play the story; the exit code."""
    app = world.start_app(STATUSES_EVERY=1, RETRY_AFTER=1)
    print(f"Portal {world.portal.url}  OAuth {world.oauth.url}  SMS.ru {world.smsru.url}\n"
          f"App {app.url}  its data {app.data}")
    return 0 if Story(world).play() else 1


def stay_up(world, operator):
    """Start the app, not installed yet; the rest is clicked, until Ctrl-C or SIGTERM."""
    world.start_box(SMS_OPERATOR=operator)
    print(f"Open {world.portal.url}/ in a browser. Ctrl-C ends everything.")
    threading.Event().wait()


def main(arguments=None):
    """Stay up with the portal's page, or play the story when told --once."""
    options = argparse.ArgumentParser(description="Try the app on a pretend Bitrix24.")
    options.add_argument("--once", action="store_true",
                         help="play the story without a browser and end: 0 or 1")
    options.add_argument("--port", type=int, default=0, help="the pretend portal's port")
    options.add_argument("--operator", default="smsru",
                         help="the app's SMS_OPERATOR, instead of smsru and the pretend SMS.ru")
    chosen = options.parse_args(arguments)
    if chosen.once and chosen.operator != "smsru":
        options.error("--once plays a story with SMS.ru; leave out --once to try an operator")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's "&" would have SIGINT ignored
        signal.signal(ending, goodbye)
    world = World(chosen.port)
    try:
        world.start()
        return play_once(world) if chosen.once else stay_up(world, chosen.operator)
    except (OSError, AssertionError) as error:
        print(f"It could not start: {error}")
        return 1
    except KeyboardInterrupt:
        print("\nStopping.")
        return 0
    finally:
        world.stop()


if __name__ == "__main__":
    sys.exit(main())
