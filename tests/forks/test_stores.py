"""The seam's contract, queue and settings, on both stores: app.py's files, a fork's PostgreSQL."""
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import requests
from pretend import GOOD_KEY, TEXT, Browser, install, until
from steps import (
    FOLDERS,
    HOUR,
    NUMBER,
    PHONE,
    Gate,
    calls,
    code_of,
    handler_url,
    one_pass,
    received,
    send,
)
from stores import logged, server, stored_world

__all__ = ["server", "stored_world"]  # fixtures
OTHER_KEY = "99999999-8888-7777-6666-555555555555"
LATER, BAD_NUMBER, NO_MONEY, DAYS_LIMIT = 230, 202, 201, 206  # SMS.ru's codes
RETRY_AFTER = 60


@pytest.fixture
def ready(stored_world):
    """The app running and installed, nothing waiting, the others as good as new."""
    world, operator = stored_world, stored_world.smsru
    operator.down, operator.trouble, operator.refuse, operator.slow = False, None, None, 0
    operator.delay, operator.codes, operator.keys = 0, {}, {GOOD_KEY, OTHER_KEY}
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


def history(world, message_id):
    return world.portal.messages[message_id]["history"]


def outcomes(world, message_id):
    """What became of each try, in whatever process."""
    return [line["outcome"] for line in logged(world, "send", message_id)]


def lies(world, message_id, folder):
    """Wait until the message is in this folder."""
    until(lambda: world.store.state(message_id) == folder, message=f"it is not in {folder}")


def tried(world, message_id):
    """Wait until a try is over, and the message back among those that wait."""
    until(lambda: outcomes(world, message_id), message="it was not tried")
    lies(world, message_id, "new")


def pass_over(world, app=None):
    """A pass for which everything is due."""
    world.store.make_due()
    return one_pass(world, app)


def empty_queue(world, app=None):
    """Passes until nothing waits."""
    until(lambda: pass_over(world, app)["waiting"] == 0, 20, "messages are left in the queue")


# Nothing lost ------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["Ваш код: 1234 😀", "a\0b"])
def test_200_means_kept_whatever_happens_next_and_the_text_goes_when_it_is_sent(ready, text):
    ready.smsru.down, ready.smsru.delay = True, HOUR
    message_id = send(ready, text)
    ready.app.kill()
    kept = ready.store.messages()[message_id]
    assert (kept["to"], kept["text"], kept["operator_id"]) == (PHONE, text, "")
    ready.smsru.down = False
    ready.app.start()
    until(lambda: pass_over(ready) and received(ready, text) == 1)
    lies(ready, message_id, "sent")
    kept = ready.store.messages()[message_id]
    assert (kept["to"], kept["text"]) == ("", "")
    ready.smsru.delay = 0
    empty_queue(ready)
    assert history(ready, message_id) == ["sent", "delivered"]


# Nothing doubled ---------------------------------------------------------------------------------

def message_in(world, folder):
    """A message that stays in this folder until the trouble ends: (its id, what ends it)."""
    operator = world.smsru
    operator.codes[NUMBER] = {"new": LATER, "failed": BAD_NUMBER}.get(folder, 100)
    operator.delay = HOUR
    gate = Gate(operator, "/sms/send")
    if folder != "sending":
        gate.open.set()
    message_id = send(world, "first")
    lies(world, message_id, folder)
    if folder == "new":
        tried(world, message_id)
    return message_id, gate


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_repeated_id_neither_replaces_the_first_nor_is_sent_wherever_that_is(ready, folder):
    message_id, gate = message_in(ready, folder)
    before = ready.store.messages()[message_id]
    assert send(ready, "another text", message_id=message_id) == message_id
    assert ready.store.messages() == {message_id: before}
    assert ready.store.state(message_id) == folder
    ready.smsru.codes.clear()
    ready.smsru.delay = 0
    gate.open.set()
    empty_queue(ready)
    assert received(ready, "another text") == 0
    assert received(ready, "first") == (folder != "failed")
    assert history(ready, message_id)[-1] == ("failed" if folder == "failed" else "delivered")


def test_an_id_that_has_left_is_a_genuine_resend(ready):
    message_id = send(ready, "first")
    empty_queue(ready)
    send(ready, "second", message_id=message_id)
    empty_queue(ready)
    assert [one["msg"] for one in ready.smsru.sent] == ["first", "second"]


def test_repeats_at_two_processes_at_once_are_one_message(ready):
    ready.smsru.slow = 0.2
    urls = [handler_url(ready), handler_url(ready, ready.store.start(ready))] * 8
    fields = ready.portal.message_fields(PHONE, "once", "simultaneous", code_of(ready))
    ready.portal.messages["simultaneous"] = {"history": ["sent"], "code": code_of(ready),
                                             "author": 1}
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda url: ready.portal.deliver(url, fields), urls)) == {200}
    empty_queue(ready)
    assert received(ready, "once") == 1
    assert history(ready, "simultaneous") == ["sent", "delivered"]


def test_several_processes_and_passes_send_each_message_once(ready):
    ready.smsru.down = True
    others = [ready.store.start(ready) for _ in range(2)]
    texts = [f"text {number}" for number in range(60)]
    ids = [one for one, _ in ready.portal.send_many([(PHONE, text) for text in texts])]
    until(lambda: any(outcomes(ready, one) for one in ids))
    ready.smsru.down, ready.smsru.slow = False, 0.01
    ready.store.make_due()
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda app: one_pass(ready, app), [ready.app, *others] * 3))
    empty_queue(ready)
    assert sorted(one["msg"] for one in ready.smsru.sent) == sorted(texts)
    assert {tuple(history(ready, one)) for one in ids} == {("sent", "delivered")}


# Doubts ------------------------------------------------------------------------------------------

def test_a_message_in_hand_is_left_alone_and_is_a_doubt_once_its_sender_was_killed(ready):
    other = ready.store.start(ready)
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: gate.asked)
    assert pass_over(ready, other)["sent"] == 0
    assert ready.store.state(message_id) == "sending"
    assert len(gate.asked) == 1
    ready.app.kill()
    ready.smsru.trouble = None
    until(lambda: pass_over(ready, other)["sent"] == 1)  # once PostgreSQL has seen it die
    gate.open.set()
    assert outcomes(ready, message_id) == ["in doubt", "sent"]
    ready.app.start()
    empty_queue(ready)
    assert history(ready, message_id) == ["sent", "delivered"]


def test_what_a_killed_sender_left_is_in_doubt_and_waits_for_its_next_try(ready):
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: gate.asked)
    ready.app.kill()
    gate.open.set()
    ready.app.start()
    until(lambda: one_pass(ready) and ready.store.state(message_id) == "new")
    assert ready.store.messages()[message_id]["in_doubt"] is True
    assert RETRY_AFTER / 2 < ready.store.pause(message_id) <= RETRY_AFTER
    ready.store.make_due()
    assert one_pass(ready)["sent"] == 1


def test_a_message_whose_senders_are_killed_twice_is_failed_and_not_tried_again(ready):
    other = ready.store.start(ready)
    gate = Gate(ready.smsru, "/sms/send")
    message_id = send(ready, TEXT)
    until(lambda: len(gate.asked) == 1)
    ready.app.kill()
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(until, lambda: pass_over(ready, other)["sent"])
        until(lambda: len(gate.asked) == 2)
        other.kill()
        assert passing.exception()
    gate.open.set()
    ready.app.start()
    empty_queue(ready)
    assert outcomes(ready, message_id) == ["in doubt", "in doubt"]
    assert len(gate.asked) == 2
    assert history(ready, message_id) == ["sent", "failed"]


# Being due ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("age", "pause"), [
    (0, RETRY_AFTER), (10 * RETRY_AFTER, 10 * RETRY_AFTER), (5 * HOUR, HOUR)])
def test_an_unsent_message_is_due_after_its_pause_not_before(ready, age, pause):
    """The pause is as long as it has waited so far, at least RETRY_AFTER, at most an hour."""
    ready.smsru.codes[NUMBER] = LATER
    message_id = send(ready, TEXT)
    tried(ready, message_id)
    ready.store.change(message_id, received=time.time() - age)
    one_pass(ready)
    until(lambda: len(outcomes(ready, message_id)) == 2)
    lies(ready, message_id, "new")
    assert pause - 15 < ready.store.pause(message_id) < pause + 15
    ready.smsru.codes.clear()
    assert one_pass(ready)["sent"] == 0
    ready.store.make_due()
    assert one_pass(ready)["sent"] == 1


@pytest.mark.parametrize(("age", "pause"), [(20 * RETRY_AFTER, 2 * RETRY_AFTER), (50 * HOUR, HOUR)])
def test_a_sent_message_is_asked_about_after_a_tenth_of_its_age_not_before(ready, age, pause):
    ready.smsru.delay = HOUR
    message_id = send(ready, TEXT)
    lies(ready, message_id, "sent")
    ready.store.change(message_id, sent_at=time.time() - age)
    assert one_pass(ready)["waiting"] == 1
    assert pause - 15 < ready.store.pause(message_id) < pause + 15
    ready.smsru.delay = 0
    assert one_pass(ready)["delivered"] == 0
    ready.store.make_due()
    assert one_pass(ready)["delivered"] == 1


def test_a_final_status_that_the_portal_did_not_take_is_kept_and_told_when_it_is_due(ready):
    message_id = send(ready, TEXT)
    lies(ready, message_id, "sent")
    ready.portal.trouble = lambda method, path, fields: (500, {"error": "INTERNAL"}, {})
    assert one_pass(ready)["errors"] == {"portal": "INTERNAL"}
    assert ready.store.messages()[message_id]["status"] == "delivered"
    assert RETRY_AFTER - 15 < ready.store.pause(message_id) <= RETRY_AFTER
    ready.portal.trouble = None
    ready.smsru.requests.clear()
    assert one_pass(ready)["delivered"] == 0
    assert pass_over(ready)["delivered"] == 1
    assert calls(ready.smsru, "/sms/status") == []
    assert ready.store.messages() == {}


def test_what_has_waited_longest_goes_first_and_alone(ready):
    ready.smsru.codes[NUMBER] = LATER
    ids = {text: send(ready, text) for text in ("one", "two", "three")}
    for message_id in ids.values():
        tried(ready, message_id)
    ready.app.stop()  # its sender looks no more
    ready.app.start()
    ready.smsru.codes.clear()
    ready.store.make_due(ids["one"])
    ready.store.make_due(ids["two"], ago=2 * HOUR)
    ready.store.make_due(ids["three"], ago=HOUR)
    gate = Gate(ready.smsru, "/sms/send")
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(one_pass, ready)
        until(lambda: gate.asked)
        assert [one["msg"] for one in gate.asked] == ["two"]
        assert [ready.store.state(one) for one in ids.values()] == ["new", "sending", "new"]
        gate.open.set()
        assert passing.result()["sent"] == 3


# Resting -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("code", "word", "pause"), [
    (NO_MONEY, "money", RETRY_AFTER), (DAYS_LIMIT, "limit", HOUR)])
def test_trouble_with_the_account_lets_every_process_rest_until_a_save(ready, code, word, pause):
    other = ready.store.start(ready)
    ready.smsru.refuse = code
    tried(ready, send(ready, "first"))
    until(lambda: ready.store.rests() > 1)
    send(ready, "second")
    assert one_pass(ready, other)["errors"] == {"operator": word}
    assert len(calls(ready.smsru, "/sms/send")) == 1
    assert pause - 15 < ready.store.rests() <= pause
    ready.smsru.refuse = None
    browser = Browser(ready)
    browser.open("index")
    assert browser.save(api_key=OTHER_KEY).status_code == 200
    until(lambda: received(ready, "second"))
    assert "operator" not in one_pass(ready, other)["errors"]


# Leaving -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", [one for one in FOLDERS if one != "sending"])
def test_an_uninstall_with_clean_takes_what_waits_along(ready, folder):
    message_in(ready, folder)
    assert ready.portal.fire("ONAPPUNINSTALL", CLEAN=1) == 200
    assert ready.store.messages() == {}
    assert ready.store.settings() == {}


@pytest.mark.parametrize("clean", [0, 1])
def test_an_uninstall_while_a_message_is_being_sent_is_not_undone(ready, clean):
    other = ready.store.start(ready)
    message_id, gate = message_in(ready, "sending")
    assert ready.portal.fire("ONAPPUNINSTALL", CLEAN=clean) == 200
    gate.open.set()
    until(lambda: len(ready.smsru.sent) == 1)
    assert ready.app.stop() == 0  # its sender has come to an end
    assert requests.get(other.url + "statuses?key=any", timeout=10).status_code == 503
    assert ready.store.settings() == {}
    assert set(ready.store.messages()) <= ({message_id} if not clean else set())


# Settings ----------------------------------------------------------------------------------------

def at_the_operator(world):
    """Wait until every message that waits has been accepted."""
    until(lambda: all(world.store.state(one) == "sent" for one in world.store.messages()))


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


def test_a_token_that_a_save_has_replaced_meanwhile_is_not_renewed(ready):
    send(ready, TEXT)
    at_the_operator(ready)
    gate = Gate(ready.portal, "batch.json")
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(one_pass, ready)
        until(lambda: gate.asked)
        ready.portal.expire_tokens()
        browser = Browser(ready)
        browser.open("index")
        assert browser.save().status_code == 200
        gate.open.set()
        assert passing.result()["delivered"] == 1
    assert calls(ready.oauth, "/oauth/token/") == []


def test_a_key_saved_while_a_pass_renews_the_tokens_is_kept(ready):
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
        assert not wait([saving], timeout=0.5).done
        gate.open.set()
        assert saving.result().status_code == 200
        assert passing.result()["errors"] == {}
    assert ready.store.settings()["operators"] == {"smsru": {"api_key": OTHER_KEY}}
    empty_queue(ready)
