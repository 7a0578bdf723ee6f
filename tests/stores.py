"""The two stores behind the seam, as tests see them: app.py's files, a fork's rows in PostgreSQL."""
import glob
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from portal import ROOT, App, free_port
from test_queue import forget

PROGRAMS = [os.path.dirname(shutil.which("initdb") or ""),
            *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]


class Cluster:
    """A PostgreSQL of our own in a throw-away folder. It refuses root: Debian has its user."""

    def __init__(self):
        found = next((one for one in PROGRAMS if os.path.exists(os.path.join(one, "pg_ctl"))), None)
        if found is None:
            raise OSError("no initdb and pg_ctl here")
        self.folder, self.programs = tempfile.mkdtemp(prefix="postgres-"), os.path.realpath(found)
        self.root = os.geteuid() == 0
        if self.root:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self.data, port = os.path.join(self.folder, "data"), free_port()
        self.run("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale")
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
    """A PostgreSQL server's URL: TEST_DATABASE_URL, or a cluster for this session."""
    given, cluster = os.environ.get("TEST_DATABASE_URL"), None
    try:
        cluster = None if given else Cluster()
    except (OSError, KeyError) as error:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"no PostgreSQL ({error}); set TEST_DATABASE_URL=postgresql://user@host/database")
    yield given or cluster.url
    if cluster:
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
            world.app, self.data = app, app.data
            for portal in world.portals:
                portal.app_url = app.url
        return app

    def settings(self):
        path = self.data / "settings.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def messages(self):
        """What waits: {message_id: message}."""
        found = {}
        for path in (self.data / "queue").glob("*.json"):
            with suppress(FileNotFoundError):
                found[path.stem] = json.loads(path.read_text("utf-8"))
        return found

    def due(self, message_id):
        return (self.data / "queue" / f"{message_id}.json").stat().st_mtime

    def clear(self):
        """An empty queue, and a log that starts anew."""
        forget(self)

    def make_due(self):
        """Let every pause be over; a claim's mark stays."""
        for path in (self.data / "queue").glob("*.json"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime > 1:
                    os.utime(path, (time.time() - 60,) * 2)

    def change(self, message_id, **news):
        path = self.data / "queue" / f"{message_id}.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **news}), "utf-8")
        self.make_due()


class Rows(Files):
    """The fork's store: every process has a DATA_DIR of its own, as on a machine of its own."""

    script, same = ROOT / "tests" / "forks" / "many_portals.py", ()

    def __init__(self, url):
        self.env = {"DATABASE_URL": url}

    def sql(self, command, *values):
        with psycopg.connect(self.env["DATABASE_URL"], autocommit=True) as db:
            cursor = db.execute(command, values)
            return cursor.fetchall() if cursor.description else []

    def settings(self):
        """Of the only portal, or {}."""
        found = self.sql("SELECT data FROM settings")
        assert len(found) < 2
        return found[0][0] if found else {}

    def messages(self):
        return dict(self.sql("SELECT message_id, data FROM messages"))

    def due(self, message_id):
        return self.sql("SELECT due FROM messages WHERE message_id = %s", message_id)[0][0]

    def clear(self):
        self.sql("DELETE FROM messages")
        for path in (self.data / "logs").iterdir():
            os.truncate(path, 0)

    def make_due(self):
        self.sql("UPDATE messages SET due = %s WHERE due > 1", time.time() - 60)

    def change(self, message_id, **news):
        message = json.dumps({**self.messages()[message_id], **news})
        self.sql("UPDATE messages SET data = %s WHERE message_id = %s", message, message_id)
        self.make_due()


def logged(world, kind, message_id=None):
    """The lines of one type in the logs of every process."""
    folders = {app.data / "logs" for app in world.apps}
    lines = [json.loads(line) for folder in folders for path in Path(folder).glob("*.log")
             for line in path.read_text("utf-8").splitlines()]
    return [one for one in lines
            if one["type"] == kind and message_id in (None, one.get("message_id"))]
