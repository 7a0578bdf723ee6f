"""Many portals on many machines: DATABASE_URL=... python tests/forks/many_portals.py [statuses]
All processes share one PostgreSQL (no pooler before it, unless it keeps sessions). A request's
secret picks its portal; without one its member_id does, which is not proven yet then. A message
is one row, its folder the column state: it moves in one step, so it never lies in two."""
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

from psycopg_pool import ConnectionPool

sys.path.insert(0, __file__.rpartition("/tests/")[0])
import app

TABLES = """SELECT pg_advisory_xact_lock(1);
CREATE TABLE IF NOT EXISTS settings (member_id text PRIMARY KEY, secret text UNIQUE, data json,
    rests_until float8 DEFAULT 0, reason text);
CREATE TABLE IF NOT EXISTS messages (member_id text REFERENCES settings ON DELETE CASCADE,
    message_id text, data json, state text DEFAULT 'new',
    due float8 DEFAULT date_part('epoch', now()), PRIMARY KEY (member_id, message_id));
CREATE INDEX IF NOT EXISTS due ON messages (member_id, state, due)"""
MINE, NOW = "WHERE member_id = %(portal)s", "date_part('epoch', now())"
THIS, KEY = MINE + " AND message_id = %(id)s", "(hashtextextended(%s, 0))"
THERE = THIS + " AND state = %(folder)s"  # else somebody was faster: what is farther, counts
PORTAL = ContextVar("PORTAL", default="")  # member_id of the portal that is worked for
app.logging.getLogger("psycopg.pool").disabled = True  # it quotes a mistyped URL, and its password


def alive(db):
    try:
        db.execute("")
    except Exception:
        for pool in (DATABASE, LOCKS):  # the others may be as dead
            pool.check()
        raise


DATABASE, LOCKS = (ConnectionPool(  # two: whoever holds a lock still finds a connection
    app.env("DATABASE_URL"), kwargs={"autocommit": True}, min_size=1, max_size=most, open=False,
    configure=lambda db: db.execute(TABLES), check=alive, reconnect_timeout=5) for most in (8, 32))


def sql(command, **values):  # for this portal; out: the only column of what is found
    DATABASE.open()
    with DATABASE.connection() as db:
        cursor = db.execute(command, {"portal": PORTAL.get(), **values})
        return [value for value, in cursor] if cursor.description else []


@contextmanager
def locked(name, wait=True):
    """A portal's lock, between machines too; it dies with its owner's connection."""
    name, attempt = [f"{name} {PORTAL.get()}"], "" if wait else "try_"
    LOCKS.open()
    with LOCKS.connection() as db:
        if db.execute(f"SELECT pg_{attempt}advisory_lock{KEY}", name).fetchone() == (False,):
            raise BlockingIOError("somebody else has it")
        try:
            yield
        finally:
            db.execute(f"SELECT pg_advisory_unlock{KEY}", name)


class MyRest(app.CRest):
    def get_setting_data(self):
        return next(iter(sql(f"SELECT data FROM settings {MINE}")), {})

    def set_setting_data(self, settings):
        if not settings:  # its messages go along
            return sql(f"DELETE FROM settings {MINE}")
        app.require(settings["member_id"] == PORTAL.get(), 403, "OTHER_PORTAL: not the token's")
        sql("INSERT INTO settings VALUES (%(portal)s, %(secret)s, %(data)s)"
            " ON CONFLICT (member_id) DO UPDATE SET data = excluded.data",
            secret=settings["handler_key"], data=json.dumps(settings))


class Queue(app.Queue):  # whose clear() and sweep() find no files here
    def put(message):
        sql("INSERT INTO messages VALUES (%(portal)s, %(id)s, %(data)s) ON CONFLICT DO NOTHING",
            id=message["message_id"], data=json.dumps(message))

    def due(*folders):
        return sql(f"SELECT message_id FROM messages {MINE} AND state = ANY(%(folders)s)"
                   f" AND due <= {NOW} ORDER BY due", folders=list(folders))

    def read(folder, ids):
        return sql(f"SELECT data FROM messages {MINE} AND state = %(folder)s"
                   " AND message_id = ANY(%(ids)s)", folder=folder, ids=ids)

    def take(ids):
        return sql(f"UPDATE messages SET state = 'sending' {MINE} AND state = 'new'"
                   " AND message_id = ANY(%(ids)s) RETURNING data", ids=ids)

    def record(message, folder, later=None):
        sql(f"UPDATE messages SET data = %(data)s, state = %(later)s, due = {NOW} {THERE}",
            id=message["message_id"], folder=folder, data=json.dumps(message), later=later or folder)
    def postpone(folder, message_id, pause):
        sql(f"UPDATE messages SET due = {NOW} + %(pause)s {THERE}",
            id=message_id, folder=folder, pause=min(pause, app.HOUR))
    def move_back(message, pause):
        Queue.record(message, "sending", "new")
        Queue.postpone("new", message["message_id"], pause)
    def remove(message_id):
        sql(f"DELETE FROM messages {THIS}", id=message_id)
    def hurry():
        sql(f"UPDATE messages SET due = {NOW} {MINE} AND state = 'new'")
        Queue.rest(0)
    def waiting():
        return sql(f"SELECT count(*) FROM messages {MINE}")[0]
    def rest(seconds, outcome=""):
        sql(f"UPDATE settings SET rests_until = {NOW} + %(seconds)s, reason = %(outcome)s {MINE}",
            seconds=seconds, outcome=outcome)
    def resting():
        return next(iter(sql(f"SELECT reason FROM settings {MINE} AND rests_until > {NOW}")), "")


class Executor(ThreadPoolExecutor):  # its threads work for the portal that gave them work
    def submit(self, work, *args):
        return super().submit(copy_context().run, work, *args)


@app.app.hook("before_request")
def pick():
    fields = {name: text.replace("\0", "") for name, text in app.form().items()}
    PORTAL.set(fields.get("member_id") or fields.get("auth[member_id]", ""))
    if "key" in fields:
        found = sql("SELECT member_id FROM settings WHERE secret = %(key)s", key=fields["key"])
        PORTAL.set(next(iter(found), ""))


def every_pass():
    """Of the portal that /statuses?key=... picked, or of all."""
    portals = "SELECT member_id FROM settings WHERE %(portal)s IN ('', member_id) ORDER BY random()"
    each = list(PASSES.map(pass_of, sql(portals)))
    whole = {name: sum(one.get(name, 0) for one in each) for name in (*app.FINAL, "waiting")}
    return {**whole, "errors": {k: v for one in each for k, v in one["errors"].items()}}


def pass_of(member_id, one_pass=app.one_pass):
    PORTAL.set(member_id)
    return app.attempt(one_pass) or {"errors": {"portal": "a mistake; the log says which"}}


app.crest, app.Queue, app.locked, app.one_pass = MyRest(), Queue, locked, every_pass
app.ThreadPoolExecutor, app.BACKGROUND, application = Executor, Executor(8), app.application
app.WOKEN.is_set = bool  # no: each portal's messages are work of its own
PASSES = Executor(8)  # of its own: silent portals do not hold up sending
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
