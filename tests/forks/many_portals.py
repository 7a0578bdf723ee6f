"""Many portals on many machines: DATABASE_URL=... python tests/forks/many_portals.py [statuses]
All processes and passes share one PostgreSQL (no pooler before it, unless it keeps sessions). A
request's secret picks its portal; without one its member_id does, which is not proven yet then."""
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from psycopg_pool import ConnectionPool

sys.path.insert(0, __file__.rpartition("/tests/")[0])
import app

TABLES = """SELECT pg_advisory_xact_lock(1);
CREATE TABLE IF NOT EXISTS settings (member_id text PRIMARY KEY, secret text UNIQUE, data json);
CREATE TABLE IF NOT EXISTS messages (member_id text REFERENCES settings ON DELETE CASCADE,
    message_id text, due float8, data json, PRIMARY KEY (member_id, message_id))"""
app.logging.getLogger("psycopg.pool").disabled = True  # it quotes a mistyped URL, and its password


def alive(db):
    try:
        db.execute("")
    except Exception:
        DATABASE.check()  # the others may be as dead
        raise


DATABASE = ConnectionPool(  # a lost database is looked for each 5 seconds
    app.env("DATABASE_URL"), kwargs={"autocommit": True}, min_size=1, max_size=24, open=False,
    reconnect_timeout=5, configure=lambda db: db.execute(TABLES), check=alive)
PASSES = threading.BoundedSemaphore(8)  # each holds a connection, so do 8 senders: 8 are left
TAKEN = threading.local()  # .db: the connection this thread has
OURS = {"operator": app.SMS_OPERATOR, "code": app.SENDER_CODE}
PORTAL = ContextVar("PORTAL", default="")  # member_id of the portal that is worked for


@contextmanager
def connected():
    """One connection a thread, all the way down: nobody holds one and waits for another."""
    DATABASE.open()
    taken = getattr(TAKEN, "db", None)
    with nullcontext(taken) if taken else DATABASE.connection() as TAKEN.db:
        try:
            yield TAKEN.db
        finally:
            TAKEN.db = taken


def sql(command, *values):
    with connected() as db:
        cursor = db.execute(command, values)
        return cursor.fetchall() if cursor.description else cursor.rowcount  # how many changed


@contextmanager
def locked(name, wait=True):
    """A portal's lock, between machines too; it dies with its owner's connection."""
    name, attempt = f"{name} {PORTAL.get()}", "" if wait else "try_"
    with connected():
        if sql(f"SELECT pg_{attempt}advisory_lock(hashtextextended(%s, 0))", name)[0][0] is False:
            raise BlockingIOError("somebody else has it")
        try:
            yield
        finally:
            sql("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", name)


@app.app.hook("before_request")
def pick():
    fields = {name: text.replace("\0", "") for name, text in app.form().items()}
    PORTAL.set(fields.get("member_id") or fields.get("auth[member_id]", ""))
    if "key" in fields:
        found = sql("SELECT member_id FROM settings WHERE secret = %s", fields["key"])
        PORTAL.set(found[0][0] if found else "")


def every_pass(one_pass=app.one_pass):
    """Of the portal that /statuses?key=... picked, or of all; started by cron none holds up the next."""
    if PORTAL.get():
        with PASSES:
            return one_pass()
    with ThreadPoolExecutor(4) as pool:
        each = list(pool.map(lambda row: PORTAL.set(row[0]) and every_pass(),
                             sql("SELECT member_id FROM settings ORDER BY random()")))
    whole = {name: sum(one[name] for one in each) for name in ("sent", *app.FINAL, "waiting")}
    return {**whole, "errors": {k: v for one in each for k, v in one["errors"].items()}}


def get_setting_data():
    return (sql("SELECT data FROM settings WHERE member_id = %s", PORTAL.get()) or [[{}]])[0][0]


def set_setting_data(settings):
    if not settings:
        return sql("DELETE FROM settings WHERE member_id = %s", PORTAL.get())
    app.require(settings["member_id"] == PORTAL.get(), 403, "OTHER_PORTAL: not the token's")
    sql("INSERT INTO settings VALUES (%s, %s, %s) ON CONFLICT (member_id) DO UPDATE SET data ="
        " excluded.data", PORTAL.get(), settings["handler_key"], json.dumps(settings))


class Queue:
    def put(message, due):
        if not sql("INSERT INTO messages VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                   message["member_id"], message["message_id"], due, json.dumps(message)):
            raise FileExistsError(message["message_id"])

    @contextmanager
    def claim(message_id, settings):
        """A short transaction picks and marks it; the lock keeps it while it is being sent."""
        with locked(f"message {message_id}", wait=False), connected() as db:
            with db.transaction():
                rows = sql("SELECT data, due FROM messages WHERE member_id = %s AND message_id = %s"
                           " FOR UPDATE SKIP LOCKED", PORTAL.get(), message_id)
                message, mark = rows[0] if rows else ({"operator_id": "gone", "status": ""}, 0)
                if message["operator_id"] + message["status"] or OURS.items() - message.items():
                    raise BlockingIOError("somebody else had it")
                if mark in (0, 1):  # its sender was killed
                    message["doubts"] = int(mark) + 1
                    app.CRest.set_log("in doubt", message_id=message_id)
                Queue.record(message, message["doubts"])
            yield message

    def due(settings, size):
        rows = sql("SELECT data FROM messages, date_part('epoch', now()) t WHERE member_id = %s AND"
                   " due NOT BETWEEN t AND t + 3600 ORDER BY due LIMIT 10000", PORTAL.get())
        for start in range(0, len(rows), size):
            if not app.STOP.is_set():
                yield [one for one, in rows[start:start + size] if OURS.items() <= one.items()]

    def record(message, due):
        sql("UPDATE messages SET due = %s, data = %s WHERE member_id = %s AND message_id = %s",
            due, json.dumps(message), message["member_id"], message["message_id"])
    postpone = record
    def remove(message):
        sql("DELETE FROM messages WHERE member_id = %s AND message_id = %s",
            message["member_id"], message["message_id"])
    def waiting():
        return sql("SELECT count(*) FROM messages WHERE member_id = %s", PORTAL.get())[0][0]
    def clear():
        """An uninstalled portal's settings took its messages along."""


app.CRest.get_setting_data, app.CRest.set_setting_data = get_setting_data, set_setting_data
app.Queue, app.locked, app.one_pass, application = Queue, locked, every_pass, app.application
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
