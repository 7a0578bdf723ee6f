"""Everything around the app, and the app itself as a process, the way users run it."""
import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import requests

from .bitrix24 import Portal
from .box import ENV, Box
from .oauth import OAuth
from .smsru import SmsRu
from .wire import Wire, until

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV")


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
