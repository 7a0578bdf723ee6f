"""tests/forks/many_portals.py: many portals on many machines share one database."""
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from pretend import GOOD_KEY, Browser, Story, World, until
from pretend.wire import flat
from steps import PHONE, Gate, calls, received
from stores import Rows, database, logged, server

__all__ = ["server"]  # a fixture
pytestmark = pytest.mark.needs("postgresql")
OTHER_KEY = "99999999-8888-7777-6666-555555555555"
REPEATED = "r" * 32


def history(portal, message_id):
    return portal.messages[message_id]["history"]


def test_the_story_comes_true_in_the_database(world, server):
    with database(server) as url:
        store = Rows(url)
        app = store.start(world, STATUSES_EVERY=1, RETRY_AFTER=1)
        assert Story(world).play()
        until(lambda: not store.messages())
        assert store.settings()["member_id"] == world.portal.member_id
        assert app.stop() == 0


@pytest.fixture(scope="module")
def two_world(server):
    """Two portals, each with its operator's key and its tokens, at three processes."""
    with World() as world, database(server) as url:
        world.store = Rows(url)
        world.first, world.second, world.stranger = world.portal, world.another_portal(), None
        world.smsru.keys.add(OTHER_KEY)
        for _ in range(3):
            world.store.start(world, RETRY_AFTER=0.5)
        yield world
        world.stop()


@pytest.fixture
def two(two_world):
    """Both installed, all three running, nothing waiting."""
    world, operator = two_world, two_world.smsru
    operator.down, operator.trouble, operator.delay, operator.slow = False, None, 0, 0
    for app in world.apps:
        if not app.running:
            app.start()
    for portal, key in ((world.first, GOOD_KEY), (world.second, OTHER_KEY)):
        if not portal.installed:
            assert Browser(world, portal=portal).install(api_key=key).status_code == 200
    for party in (operator, world.oauth):
        party.requests.clear()
    operator.sent.clear()
    world.store.clear()
    return world


def every_pass(world, app):
    """A pass over all portals, as cron runs it; its totals."""
    code, output = app.run("statuses")
    totals = json.loads(output)
    assert code == bool(totals["errors"])
    return totals


def empty_queue(world):
    """Passes over all portals until nothing waits."""
    def pass_over():
        world.store.make_due()
        return every_pass(world, world.app)["waiting"] == 0
    until(pass_over, 30, "messages are left in the queue")


def url_of(portal, app, page="handler"):
    """Where the portal calls, at one of the processes."""
    sender, = portal.senders.values()
    return f"{app.url}{page}?key={sender['HANDLER'].partition('?key=')[2]}"


def write(world, portal, number, text, message_id=None):
    """A message of the portal to one of the processes in turn; its id if it was answered 200."""
    message_id, (code,) = message_id or uuid.uuid4().hex, portal.senders
    portal.messages[message_id] = {"history": ["sent"], "code": code, "author": 1}
    fields = portal.message_fields(PHONE, text, message_id, code)
    url = url_of(portal, world.apps[number % len(world.apps)])
    return message_id if portal.deliver(url, fields) == 200 else None


def outcomes(world, message_id):
    """What became of each try, in whatever process."""
    return [line["outcome"] for line in logged(world, "send", message_id)]


def test_no_message_is_lost_doubled_or_sent_with_the_others_key(two):
    """Three processes, passes at each, tokens that expire, one process killed in the middle."""
    two.smsru.slow = 0.02
    work = [(portal, number) for number in range(60) for portal in (two.first, two.second)]
    with ThreadPoolExecutor(20) as pool:
        writing = [pool.submit(write, two, portal, number, f"{portal.member_id} {number}")
                   for portal, number in work]
        until(lambda: len(two.smsru.sent) > 20)
        two.apps[2].kill()
        for portal in (two.first, two.second):
            portal.expire_tokens()
        passing = [pool.submit(every_pass, two, app) for app in two.apps[:2] * 2]
        taken = [(portal, number, one.result()) for (portal, number), one in zip(work, writing)
                 if one.result()]
        assert [one.result() for one in passing]
    empty_queue(two)
    assert len(taken) >= 80
    for portal, number, message_id in taken:
        assert history(portal, message_id)[-1] == "delivered"
        doubts = outcomes(two, message_id).count("in doubt")
        assert 1 <= received(two, f"{portal.member_id} {number}") <= 1 + doubts
    used = {(one["api_id"], one["msg"].split()[0]) for one in calls(two.smsru, "/sms/send")
            if one}  # the kill may cut a request before its body
    assert used == {(GOOD_KEY, two.first.member_id), (OTHER_KEY, two.second.member_id)}
    assert len(calls(two.oauth, "/oauth/token/")) == 2


def test_equal_message_ids_of_two_portals_are_two_messages(two):
    for portal, text in ((two.first, "one"), (two.second, "two")):
        assert write(two, portal, 0, text, REPEATED)
    empty_queue(two)
    assert sorted(one["msg"] for one in two.smsru.sent) == ["one", "two"]
    assert [history(portal, REPEATED) for portal in (two.first, two.second)] == [
        ["sent", "delivered"]] * 2


def test_the_secret_picks_the_portal_whose_pass_it_is(two):
    """The messages come into the database by themselves: nobody was woken to send them."""
    for portal in (two.first, two.second):
        two.store.put(portal.member_id, "new", to=PHONE, text="wait")
    totals = requests.get(url_of(two.first, two.app, "statuses"), timeout=30).json()
    assert (totals["sent"], totals["waiting"]) == (1, 1)
    assert [one["api_id"] for one in calls(two.smsru, "/sms/send")] == [GOOD_KEY]


class SilentAccount(Gate):
    """The operator says nothing to whoever has this key."""

    def __init__(self, operator, key):
        super().__init__(operator, "/sms/send")
        self.key = key

    def __call__(self, method, path, fields):
        if fields.get("api_id") == self.key:
            super().__call__(method, path, fields)


def test_a_silent_operator_of_one_portal_holds_up_no_other(two):
    gate = SilentAccount(two.smsru, GOOD_KEY)
    for number in range(0, 30, 3):
        assert write(two, two.first, number, "silence")
    until(lambda: gate.asked)
    assert write(two, two.second, 0, "goes on")
    until(lambda: received(two, "goes on") == 1)
    assert len(gate.asked) == 1
    gate.open.set()
    empty_queue(two)


def test_trouble_with_one_portals_account_lets_the_others_go_on(two):
    no_money = {"status": "ERROR", "status_code": 201}
    two.smsru.trouble = lambda method, path, fields: (
        (200, no_money, {}) if fields.get("api_id") == GOOD_KEY else None)
    poor = write(two, two.first, 0, "no money")
    until(lambda: outcomes(two, poor) == ["money"] and two.store.state(poor) == "new")
    assert write(two, two.second, 0, "goes on")
    until(lambda: received(two, "goes on") == 1)
    reasons = "SELECT member_id, reason FROM settings WHERE rests_until > 0"
    assert two.store.sql(reasons) == [(two.first.member_id, "money")]
    two.smsru.trouble = None
    empty_queue(two)


BROKEN = """INSERT INTO settings (member_id, secret, data) VALUES ('broken', 'broken',
'{"member_id": "broken", "access_token": "without an address"}')"""


def test_a_mistake_in_one_portals_pass_is_seen_and_the_others_go_on(two):
    two.store.sql(BROKEN)
    two.store.put("broken", "sent", status="delivered")
    try:
        message_id = write(two, two.first, 0, "goes on")
        until(lambda: two.store.state(message_id) == "sent")
        totals = every_pass(two, two.app)
    finally:
        two.store.sql("DELETE FROM settings WHERE member_id = 'broken'")
    assert (totals["delivered"], list(totals["errors"])) == (1, ["portal"])
    assert [line["error"] for line in logged(two, "mistake")][-1:] == ["KeyError"]


@pytest.mark.parametrize(("mine", "named", "page"), [
    ("second", "first", "save"), ("second", "nobody", "save"), ("second", None, "save"),
    ("second", "first", "install"), ("stranger", "first", "save")])
def test_a_token_of_one_portal_does_not_reach_another(two, mine, named, page):
    two.stranger = two.stranger or two.another_portal(client_id="another")
    before = two.store.sql("SELECT * FROM settings ORDER BY 1")
    portal, name = getattr(two, mine), two.first.member_id if named == "first" else named
    if page == "save":
        browser = Browser(two, portal=portal)
        browser.open("install")
        browser.form.fields.pop("member_id", None)
        answer = browser.save(api_key=OTHER_KEY, **({"member_id": name} if name else {}))
    else:
        fields = flat({"event": "ONAPPUPDATE", "auth": {**portal.event_auth(), "member_id": name}})
        answer = requests.post(two.app.url + "install", fields, timeout=10)
    assert answer.status_code == 403
    assert two.store.sql("SELECT * FROM settings ORDER BY 1") == before


@pytest.mark.parametrize("field", ["key", "member_id", "auth[member_id]"])
def test_hostile_names_of_portals_find_none(two, field):
    for value in ("\0", "' OR 1=1 --", "x" * 5000, "😀"):
        answer = requests.post(two.app.url + "handler", {field: value}, timeout=10)
        assert answer.status_code in (403, 503)


@pytest.mark.parametrize("clean", [0, 1])
def test_the_rows_of_an_uninstalled_portal_are_gone_and_the_other_goes_on(two, clean):
    two.smsru.down = True
    for portal in (two.first, two.second):
        assert write(two, portal, 0, portal.member_id)
    until(lambda: len(calls(two.smsru, "/sms/send")) == 2)
    two.smsru.down = False
    token, two.first.application_token = two.first.application_token, "of nobody"
    assert two.first.fire("ONAPPUNINSTALL", two.app.url + "install", CLEAN=clean) == 403
    two.first.application_token = token
    assert two.first.fire("ONAPPUNINSTALL", two.app.url + "install", CLEAN=clean) == 200
    for table in ("settings", "messages"):
        assert two.store.sql(f"SELECT member_id FROM {table}") == [(two.second.member_id,)]
    two.store.make_due()
    empty_queue(two)
    assert [one["msg"] for one in two.smsru.sent] == [two.second.member_id]


def test_a_database_that_was_away_is_found_again(two):
    """Its connections are cut; the next messages find the database all the same, and soon."""
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda number: write(two, two.first, number, "before"), range(90)))
    two.store.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                  " WHERE pid <> pg_backend_pid() AND datname = current_database()")
    began = time.monotonic()
    for number in range(12):
        assert write(two, two.second, number, "after")
    assert time.monotonic() - began < 5
    empty_queue(two)
    assert received(two, "after") == 12


class Turns:
    """The operator's answers to one message: each waits for its turn."""

    def __init__(self, operator, *answers):
        self.answers = [(threading.Event(), answer) for answer in answers]
        self.asked, operator.trouble = 0, self

    def __call__(self, method, path, fields):
        if path.endswith("/sms/send") and self.asked < len(self.answers):
            turn, answer = self.answers[self.asked]
            self.asked += 1
            turn.wait(20)
            return answer


CUT_LOCKS = """SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database
WHERE locktype = 'advisory' AND datname = current_database()"""


def test_a_sender_that_has_lost_its_lock_takes_nothing_back(two):
    """It is at the operator when its connection is cut; another tries the message once more."""
    turns = Turns(two.smsru, None, (503, "", {}))
    message_id = write(two, two.first, 0, "once")
    until(lambda: turns.asked == 1)
    two.store.sql(CUT_LOCKS)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(until, lambda: every_pass(two, two.apps[1]) and turns.asked == 2)
        until(lambda: turns.asked == 2 or again.done() or two.store.make_due())
        turns.answers[0][0].set()
        until(lambda: two.store.state(message_id) == "sent")
        turns.answers[1][0].set()
        again.result()
    empty_queue(two)
    assert outcomes(two, message_id) == ["sent", "in doubt", "down"]
    assert received(two, "once") == 1
    assert history(two.first, message_id) == ["sent", "delivered"]


def test_what_another_has_sent_meanwhile_is_not_taken_again(two):
    """A sender that has lost its lock goes on with its list, on which the message still is."""
    turns = Turns(two.smsru, None)
    two.store.put(two.first.member_id, "new", to=PHONE, text="first")
    message_id = write(two, two.first, 0, "second")
    until(lambda: turns.asked == 1)
    two.store.sql(CUT_LOCKS)
    until(lambda: every_pass(two, two.apps[1]) and two.store.state(message_id) == "sent")
    turns.answers[0][0].set()
    until(lambda: logged(two, "mistake"), message="it has not come to its end")
    assert two.store.state(message_id) == "sent"
    empty_queue(two)
    assert outcomes(two, message_id) == ["sent"]
    assert history(two.first, message_id) == ["sent", "delivered"]


SILENT = """INSERT INTO settings (member_id, secret, data) SELECT 'silent' || n, 'key' || n,
(data::jsonb || jsonb_build_object('member_id', 'silent' || n, 'handler_key', 'key' || n))::json
FROM settings, generate_series(1, 30) n WHERE member_id = %s"""


def test_silent_portals_leave_connections_for_the_handler_and_for_sending(two):
    """30 portals whose passes wait for an answer, each with a lock and its connection."""
    two.store.sql(SILENT, two.second.member_id)
    for number in range(1, 31):
        two.store.put(f"silent{number}", "sent", status="delivered")
    gate = Gate(two.second, "batch.json")
    with ThreadPoolExecutor(30) as pool:
        for number in range(1, 31):
            pool.submit(requests.get, f"{two.app.url}statuses?key=key{number}", timeout=60)
        until(lambda: len(gate.asked) >= 8, message="the passes do not come")
        began = time.monotonic()
        answered = [write(two, two.first, 3 * number, "now") for number in range(20)]
        took = time.monotonic() - began
        until(lambda: received(two, "now") == 20 or gate.open.is_set())
        gate.open.set()
    two.second.trouble = None
    two.store.sql("DELETE FROM settings WHERE member_id LIKE 'silent%%'")
    assert all(answered)
    assert took < 10
