"""The seam's contract, settings and queue, on both stores; then many portals in one database."""
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from portal import GOOD_KEY, TEXT, Browser, Story, World, install, until
from stores import Files, Rows, database, logged, server
from test_queue import PHONE, Gate, calls, one_pass, received, send
from wire import flat

__all__ = ["server"]  # a fixture
OTHER_KEY = "99999999-8888-7777-6666-555555555555"
REPEATED = "r" * 32


# ---- The contract -------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["files", "postgresql"])
def one_world(request):
    """A world whose app is installed, on one store after the other."""
    with ExitStack() as stack:
        world = World()
        stack.callback(world.stop)
        world.start().store = store_of(request, stack)
        world.store.start(world)
        assert install(world).status_code == 200
        yield world


def store_of(request, stack):
    if request.param == "files":
        return Files()
    return Rows(stack.enter_context(database(request.getfixturevalue("server"))))


@pytest.fixture
def ready(one_world):
    """The app running and installed, nothing waiting, the others as good as new."""
    world, operator = one_world, one_world.smsru
    operator.down, operator.trouble, operator.delay, operator.slow = False, None, 0, 0
    world.oauth.trouble = world.portal.trouble = None
    if not world.app.running:
        world.app.start()
    if not world.store.settings():
        assert install(world).status_code == 200
    for party in (operator, world.oauth, world.portal):
        party.requests.clear()
    operator.sent.clear()
    world.store.clear()
    yield world
    for app in world.apps[1:]:
        app.close()
    del world.apps[1:]


def history(portal, message_id):
    return portal.messages[message_id]["history"]


def at_the_operator(world):
    """Wait until every message that waits has its operator's id."""
    until(lambda: all(one["operator_id"] for one in world.store.messages().values()))


def empty_queue(world):
    """Passes until nothing waits."""
    def pass_over():
        world.store.make_due()
        return one_pass(world)["waiting"] == 0
    until(pass_over, 20, "messages are left in the queue")


@pytest.mark.parametrize("text", ["Ваш код: 1234 😀", "a\0b"])
def test_200_means_kept_whatever_happens_next_and_the_text_goes_when_it_is_sent(ready, text):
    ready.smsru.down = True
    message_id = send(ready, text)
    ready.app.kill()
    kept = ready.store.messages()[message_id]
    assert (kept["to"], kept["text"], kept["operator_id"]) == (PHONE, text, "")
    ready.smsru.down = False
    ready.app.start()
    ready.store.make_due()
    until(lambda: not one_pass(ready)["sent"] and received(ready, text) == 1)
    kept = ready.store.messages().get(message_id, {"to": "", "text": ""})
    assert (kept["to"], kept["text"]) == ("", "")
    empty_queue(ready)
    assert history(ready.portal, message_id) == ["sent", "delivered"]


def test_a_message_is_due_after_its_pause_not_before(ready):
    ready.smsru.down = True
    message_id = send(ready, TEXT)
    until(lambda: ready.store.messages()[message_id]["tries"] == 1)
    assert 50 < ready.store.due(message_id) - time.time() < 70
    ready.smsru.down = False
    assert one_pass(ready)["sent"] == 0
    ready.store.make_due()
    assert one_pass(ready)["sent"] == 1


def test_repeats_at_two_processes_at_once_are_one_message(ready):
    ready.smsru.slow = 0.2
    other = ready.store.start(ready)
    url = ready.portal.senders["fastsms"]["HANDLER"]
    fields = ready.portal.message_fields(PHONE, "once", REPEATED, "fastsms")
    ready.portal.messages[REPEATED] = {"history": ["sent"], "code": "fastsms", "author": 1}
    urls = [url, url.replace(ready.app.url, other.url)] * 8
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda one: ready.portal.deliver(one, fields), urls)) == {200}
    empty_queue(ready)
    assert received(ready, "once") == 1
    assert history(ready.portal, REPEATED) == ["sent", "delivered"]


def test_several_processes_and_passes_send_each_message_once(ready):
    ready.smsru.down = True
    others = [ready.store.start(ready) for _ in range(2)]
    ids = [one for one, _ in ready.portal.send_many([(PHONE, f"T{n}") for n in range(60)])]
    until(lambda: all(one["tries"] for one in ready.store.messages().values()))
    ready.store.make_due()
    ready.smsru.down, ready.smsru.slow = False, 0.01
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda app: one_pass(ready, app), [ready.app, *others] * 3))
    empty_queue(ready)
    assert sorted(one["msg"] for one in ready.smsru.sent) == sorted(f"T{n}" for n in range(60))
    assert {tuple(history(ready.portal, one)) for one in ids} == {("sent", "delivered")}


def test_a_message_in_hand_is_left_alone_and_a_claim_dies_with_its_owner(ready):
    other = ready.store.start(ready)
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: gate.asked)
    assert one_pass(ready, other)["sent"] == 0
    assert len(gate.asked) == 1
    ready.app.kill()
    ready.smsru.trouble = None
    until(lambda: one_pass(ready, other)["sent"] == 1)  # once PostgreSQL has seen it die
    gate.open.set()
    assert len(logged(ready, "in doubt", message_id)) == 1
    ready.app.start()
    empty_queue(ready)
    assert history(ready.portal, message_id) == ["sent", "delivered"]


def test_a_message_whose_senders_are_killed_twice_is_given_up(ready):
    other = ready.store.start(ready)
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: len(gate.asked) == 1)
    ready.app.kill()
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(until, lambda: one_pass(ready, other)["sent"])
        until(lambda: len(gate.asked) == 2)
        other.kill()
        assert passing.exception()
    gate.open.set()
    ready.app.start()
    assert sum(one_pass(ready)["failed"] for _ in range(2)) == 1  # given up, then reported
    assert len(gate.asked) == 2
    assert len(logged(ready, "in doubt", message_id)) == 2
    assert history(ready.portal, message_id) == ["sent", "failed"]


@pytest.mark.parametrize(("field", "value"), [("operator", "demo"), ("code", "another")])
def test_what_belongs_to_another_is_left_alone(ready, field, value):
    ready.smsru.down = True
    message_id = send(ready, TEXT)
    until(lambda: ready.store.messages()[message_id]["tries"] == 1)
    ready.smsru.down = False
    ready.store.change(message_id, **{field: value})
    before = ready.store.messages()
    assert one_pass(ready)["sent"] == 0
    assert ready.store.messages() == before


@pytest.mark.parametrize("clean", [0, 1])
def test_an_uninstall_under_a_pass_is_not_undone(ready, clean):
    other = ready.store.start(ready)
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: gate.asked)
    assert ready.portal.fire("ONAPPUNINSTALL", CLEAN=clean) == 200
    gate.open.set()
    until(lambda: len(ready.smsru.sent) == 1)
    assert requests.get(other.url + "statuses?key=any", timeout=10).status_code == 503
    assert ready.store.settings() == {}
    if clean:
        assert ready.store.messages() == {}
    else:
        assert set(ready.store.messages()) <= {message_id}


def test_whoever_loses_the_refresh_race_uses_the_winners_token(ready):
    others = [ready.store.start(ready) for _ in range(2)]
    for number in range(3):
        send(ready, f"Text {number}")
        at_the_operator(ready)
        ready.portal.expire_tokens()
        with ThreadPoolExecutor(3) as pool:
            totals = list(pool.map(lambda app: one_pass(ready, app), [ready.app, *others]))
        assert not [one for one in totals if one["errors"]]
        empty_queue(ready)
    assert len(calls(ready.oauth, "/oauth/token/")) == 3


def test_a_key_saved_while_a_pass_renews_the_tokens_is_kept(ready):
    ready.smsru.keys.add(OTHER_KEY)
    send(ready, TEXT)
    at_the_operator(ready)
    ready.portal.expire_tokens()
    gate = Gate(ready.oauth, "/oauth/token/")
    with ThreadPoolExecutor(2) as pool:
        passing = pool.submit(one_pass, ready)
        until(lambda: gate.asked)
        browser = Browser(ready)
        browser.open("index")
        saving = pool.submit(browser.save, api_key=OTHER_KEY)
        gate.open.set()
        assert saving.result().status_code == 200
        assert passing.result()["errors"] == {}
    assert ready.store.settings()["smsru"] == {"api_key": OTHER_KEY}
    empty_queue(ready)


# ---- Many portals -------------------------------------------------------------------------------
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
    operator.down, operator.delay, operator.slow = False, 0, 0
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
    return json.loads(output) if code == 0 else {"waiting": output}


def url_of(portal, app, page="handler"):
    """Where the portal calls, at one of the processes."""
    key = portal.senders["fastsms"]["HANDLER"].partition("?key=")[2]
    return f"{app.url}{page}?key={key}"


def write(world, portal, number, text):
    """A message of the portal to one of the processes in turn; its id if it was answered 200."""
    message_id = f"{portal.member_id[:4]}-{number}"
    portal.messages[message_id] = {"history": ["sent"], "code": "fastsms", "author": 1}
    fields = portal.message_fields(PHONE, text, message_id, "fastsms")
    url = url_of(portal, world.apps[number % len(world.apps)])
    return message_id if portal.deliver(url, fields) == 200 else None


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
    until(lambda: every_pass(two, two.app)["waiting"] == 0, 20)
    assert len(taken) >= 80
    for portal, number, message_id in taken:
        assert history(portal, message_id)[-1] == "delivered"
        doubt = len(logged(two, "in doubt", message_id))
        assert 1 <= received(two, f"{portal.member_id} {number}") <= 1 + doubt
    used = {(one["api_id"], one["msg"].split()[0]) for one in calls(two.smsru, "/sms/send")
            if one}  # the kill may cut a request before its body
    assert used == {(GOOD_KEY, two.first.member_id), (OTHER_KEY, two.second.member_id)}
    assert len(calls(two.oauth, "/oauth/token/")) == 2


def test_equal_message_ids_of_two_portals_are_two_messages(two):
    for portal, text in ((two.first, "one"), (two.second, "two")):
        portal.messages[REPEATED] = {"history": ["sent"], "code": "fastsms", "author": 1}
        fields = portal.message_fields(PHONE, text, REPEATED, "fastsms")
        assert portal.deliver(url_of(portal, two.app), fields) == 200
    until(lambda: every_pass(two, two.app)["waiting"] == 0)
    assert sorted(one["msg"] for one in two.smsru.sent) == ["one", "two"]
    assert [history(portal, REPEATED) for portal in (two.first, two.second)] == [
        ["sent", "delivered"]] * 2


def test_the_secret_picks_the_portal_whose_pass_it_is(two):
    two.smsru.down = True
    for portal in (two.first, two.second):
        assert write(two, portal, 0, "wait")
    tries = "SELECT count(*) FROM messages WHERE data->>'tries' = '1'"
    until(lambda: two.store.sql(tries) == [(2,)])
    two.smsru.down = False
    two.store.make_due()
    totals = requests.get(url_of(two.first, two.app, "statuses"), timeout=30).json()
    assert (totals["sent"], totals["waiting"]) == (1, 1)
    assert [one["api_id"] for one in calls(two.smsru, "/sms/send")[-1:]] == [GOOD_KEY]


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
    until(lambda: every_pass(two, two.app)["waiting"] == 0)
    assert [one["msg"] for one in two.smsru.sent] == [two.second.member_id]


def test_a_database_that_was_away_is_found_again(two):
    """Its connections are cut; the next message finds the database all the same."""
    assert write(two, two.first, 0, "before")
    two.store.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                  " WHERE pid <> pg_backend_pid() AND datname = current_database()")
    for number in range(1, 7):
        assert write(two, two.second, number, "after")
    until(lambda: every_pass(two, two.app)["waiting"] == 0)
    assert received(two, "after") == 6


SILENT = """INSERT INTO settings SELECT 'silent' || n, 'key' || n, (data::jsonb ||
jsonb_build_object('member_id', 'silent' || n, 'handler_key', 'key' || n))::json
FROM settings, generate_series(1, 30) n WHERE member_id = %s"""
TOLD = """INSERT INTO messages SELECT member_id, 'm', 2, json_build_object('message_id', 'm',
'member_id', member_id, 'operator', 'smsru', 'code', 'fastsms', 'received', 0, 'to', '', 'text', '',
'tries', 1, 'doubts', 0, 'operator_id', '', 'sent', 1, 'status', 'delivered')
FROM settings WHERE member_id LIKE 'silent%%'"""


def test_silent_portals_leave_connections_for_the_handler(two):
    """30 portals whose passes wait for an answer; each pass holds one of 24 connections."""
    two.store.sql(SILENT, two.second.member_id)
    two.store.sql(TOLD)
    gate = Gate(two.second, "batch.json")
    with ThreadPoolExecutor(30) as pool:
        for number in range(1, 31):
            pool.submit(requests.get, f"{two.app.url}statuses?key=key{number}", timeout=60)
        until(lambda: len(gate.asked) >= 8, message="the passes do not come")
        began = time.monotonic()
        answered = [write(two, two.first, 3 * number, "now") for number in range(20)]
        took = time.monotonic() - began
        gate.open.set()
    two.second.trouble = None
    two.store.sql("DELETE FROM settings WHERE member_id LIKE 'silent%%'")
    assert all(answered)
    assert took < 10
