"""The two stores behind the seam, as tests see them: app.py's files, a fork's PostgreSQL."""
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
import steps
import tools
from pretend import ROOT, App, World, free_port, install


class Cluster:
    """A PostgreSQL of our own in a throw-away folder. It refuses root: Debian has its user."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="postgres-")
        self.programs = os.path.dirname(os.path.realpath(tools.find("postgresql")))
        self.root = os.geteuid() == 0
        if self.root:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self.data, port = os.path.join(self.folder, "data"), free_port()
        self.run("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8",
                 "--no-locale")
        self.run("pg_ctl", "-w", "-l", os.path.join(self.folder, "log"), "start", "-o",
                 f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
                 " -c max_connections=200")
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def run(self, program, *words):
        command = [os.path.join(self.programs, program), "-D", self.data, *words]
        before = ["runuser", "-u", "postgres", "--"] if self.root else []
        done = subprocess.run([*before, *command], cwd=self.folder, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                              env={"PATH": os.environ["PATH"], "LC_ALL": "C"})
        if done.returncode:
            raise OSError(f"{program}: {done.stdout.decode(errors='replace')}")

    def stop(self):
        self.run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server():
    """The URL of a PostgreSQL of this session's own."""
    cluster = Cluster()
    yield cluster.url
    cluster.stop()


@contextmanager
def database(server):
    """The URL of an empty database that goes when the block ends."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
        try:
            yield psycopg.conninfo.make_conninfo(server, dbname=name)
        finally:
            db.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Files:
    """app.py's own store: every process has the same DATA_DIR."""

    script, same = ROOT / "app.py", ("DATA_DIR",)

    def __init__(self):
        self.env = {}

    def start(self, world, **env):
        """One more process of the app; the first is world.app, where the portals' calls go."""
        shared = {name: world.app.env[name] for name in self.same if world.app}
        app = App(world, **{"STATUSES_EVERY": 0, "RETRY_AFTER": 60, **self.env, **shared, **env})
        app.script = self.script
        world.apps.append(app.start())
        if not world.app:
            world.app = self.app = app
            for portal in world.portals:
                portal.app_url = app.url
        return app

    def settings(self):
        path = self.app.data / "settings.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def messages(self):
        """What waits: {message_id: message}."""
        return steps.stored(self.app)

    def state(self, message_id):
        """How far a message is, one of steps.FOLDERS; None: it is gone."""
        return steps.folder_of(self.app, message_id)

    def pause(self, message_id):
        """How many seconds from now the message is due."""
        return steps.pause(self.app, message_id)

    def rests(self):
        """How many seconds from now sending goes on."""
        return steps.rests(self.app)

    def clear(self):
        """Nothing waits, nothing rests, and a log that starts anew."""
        steps.forget(self.app)

    def make_due(self, *message_ids, ago=60):
        """Let the pauses of these, or of all, have been over for so long; sending rests no more."""
        steps.make_due(self.app, *message_ids)
        for path in [steps.path_of(self.app, one) for one in message_ids]:
            os.utime(path, (time.time() - ago,) * 2)

    def change(self, message_id, **news):
        steps.change(self.app, message_id, **news)


class Rows(Files):
    """The fork's store: every process has a DATA_DIR of its own, as on a machine of its own."""

    script, same = ROOT / "tests" / "forks" / "many_portals.py", ()

    def __init__(self, url):
        self.env = {"DATABASE_URL": url}

    def sql(self, command, *values):
        with psycopg.connect(self.env["DATABASE_URL"], autocommit=True) as db:
            cursor = db.execute(command, values)
            return cursor.fetchall() if cursor.description else []

    def value(self, command, *values):
        """The first column of the only row, or None."""
        found = self.sql(command, *values)
        assert len(found) < 2
        return found[0][0] if found else None

    def settings(self):
        """Of the only portal, or {}."""
        return self.value("SELECT data FROM settings") or {}

    def messages(self):
        return dict(self.sql("SELECT message_id, data FROM messages"))

    def state(self, message_id):
        return self.value("SELECT state FROM messages WHERE message_id = %s", message_id)

    def pause(self, message_id):
        due = self.value("SELECT due FROM messages WHERE message_id = %s", message_id)
        return due - time.time()

    def rests(self):
        return self.value("SELECT rests_until FROM settings") - time.time()

    def clear(self):
        self.sql("DELETE FROM messages")
        self.sql("UPDATE settings SET rests_until = 0")
        for path in (self.app.data / "logs").iterdir():
            os.truncate(path, 0)

    def make_due(self, *message_ids, ago=60):
        every = not message_ids
        self.sql("UPDATE messages SET due = %s WHERE %s OR message_id = ANY(%s)",
                 time.time() - ago, every, list(message_ids))
        self.sql("UPDATE settings SET rests_until = 0")

    def put(self, member_id, state, **news):
        """One more message of this portal, due, though nobody was told."""
        message = {"message_id": uuid.uuid4().hex, "to": "", "text": "", "received": time.time(),
                   "in_doubt": False, "operator_id": "", "sent_at": 0, "status": "", **news}
        self.sql("INSERT INTO messages (member_id, message_id, state, due, data) VALUES"
                 " (%s, %s, %s, 0, %s)",
                 member_id, message["message_id"], state, json.dumps(message))

    def change(self, message_id, **news):
        message = json.dumps({**self.messages()[message_id], **news})
        self.sql("UPDATE messages SET data = %s WHERE message_id = %s", message, message_id)
        self.make_due(message_id)


@pytest.fixture(scope="module", params=[
    "files", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def stored_world(request):
    """A world whose app is installed, on one store after the other."""
    with ExitStack() as stack, World() as world:
        world.store = Files()
        if request.param == "postgresql":
            world.store = Rows(stack.enter_context(database(request.getfixturevalue("server"))))
        world.store.start(world)
        assert install(world).status_code == 200
        yield world
        world.stop()  # before its database goes


def logged(world, kind, message_id=None):
    """The lines of one type in the logs of every process, each folder read once."""
    by_folder = {app.data: app for app in world.apps}
    return [line for app in by_folder.values() for line in steps.logged(app, kind, message_id)]
