"""Bounded patience: what an operator in trouble costs, and when sending goes on."""
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pretend import GOOD_KEY, World, install, until
from pretend.smsru import COST
from steps import (
    HOUR,
    NOTHING,
    NUMBER,
    PHONE,
    Gate,
    calls,
    change,
    cut,
    doubted,
    end_rest,
    folder_of,
    history,
    make_due,
    on_its_way,
    one_pass,
    outcomes,
    page,
    path_of,
    pause,
    read,
    received,
    rested,
    rests,
    send,
    stored,
    unsent,
)

RETRY_AFTER = 100  # seconds


@pytest.fixture
def world(shared):
    return shared


# One try shows it ------------------------------------------------------------------------------

TROUBLE = {"stopped": "down", "503 page": "down", "429 page": "busy", 220: "down", 500: "down",
           201: "money", 200: "key", 300: "key", 302: "key", 206: "limit"}


@pytest.mark.parametrize("what", TROUBLE)
def test_messages_wait_for_the_operator_and_one_try_shows_it(world, what):
    ids = unsent(world, "a", "b", "c")
    if what == "stopped":
        world.smsru.stop()
    elif isinstance(what, int):
        world.smsru.refuse = what
    else:
        world.smsru.trouble = page(int(what.split()[0]))
    for _ in range(2):  # the second finds sending at rest
        assert one_pass(world) == {**NOTHING, "waiting": 3, "errors": {"operator": TROUBLE[what]}}
    assert what == "stopped" or len(calls(world.smsru, "/sms/send")) == 1
    assert [pause(world.app, one) > 0 for one in ids] == [True, False, False]
    rest = HOUR if what == 206 else 100  # the day's limit is not over in a minute
    assert rest - 10 < rests(world.app) <= rest
    assert not world.portal.requests
    if what == "stopped":
        world.smsru.start()
    world.smsru.trouble = world.smsru.refuse = None
    make_due(world.app)
    assert one_pass(world)["sent"] == 3
    make_due(world.app)
    assert one_pass(world) == {**NOTHING, "delivered": 3}
    assert [received(world, text) for text in "abc"] == [1, 1, 1]


DOUBTS = {"500": page(500), "502": page(502), "504": page(504),
          "no sense": lambda method, path, fields: (200, "<html>Welcome</html>", {})}


@pytest.mark.parametrize("answer", DOUBTS)
def test_a_message_in_doubt_ends_sending_for_the_pass_and_is_tried_once_more(world, answer):
    doubtful, calm = unsent(world, "doubtful", "calm")
    world.smsru.trouble = DOUBTS[answer]
    assert one_pass(world) == {**NOTHING, "waiting": 2, "errors": {"operator": "in doubt"}}
    assert len(calls(world.smsru, "/sms/send")) == 1
    make_due(world.app, doubtful)
    os.utime(path_of(world.app, calm), (time.time() + HOUR,) * 2)
    one_pass(world)
    assert outcomes(world.app, doubtful) == ["in doubt", "in doubt"]
    assert folder_of(world.app, doubtful) == "failed"


def test_a_cut_line_ends_sending_for_the_pass(world):
    unsent(world, "doubtful", "calm")
    cut(world, 1)
    assert one_pass(world) == {**NOTHING, "waiting": 2, "errors": {"operator": "in doubt"}}
    assert len(calls(world.smsru, "/sms/send")) == 1


def test_trouble_with_sending_does_not_stop_the_portal_from_being_told(world):
    message_id, = on_its_way(world, "there")
    unsent(world, "stuck")  # due before the one that is there
    world.smsru.trouble = lambda method, path, fields: (
        (503, "", {}) if path == "/sms/send" else None)
    totals = one_pass(world)
    assert (totals["delivered"], totals["errors"]) == (1, {"operator": "down"})
    assert history(world, message_id)[-1] == "delivered"


@pytest.mark.parametrize(("age", "wait"), [(1, 100), (99, 100), (500, 500), (2000, 2000),
                                           (5 * HOUR, HOUR)])
def test_a_pause_is_as_long_as_the_message_has_waited_up_to_an_hour(world, age, wait):
    message_id, = unsent(world, "again")
    change(world.app, message_id, received=time.time() - age)
    world.smsru.down = True
    one_pass(world)
    assert wait - 5 < pause(world.app, message_id) < wait + 5
    end_rest(world.app)
    assert one_pass(world) == {**NOTHING, "waiting": 1}, "not due yet"


@pytest.mark.parametrize("code", [207, 202, 230, 231, 232, 233, 999])
def test_one_bad_message_does_not_hold_up_the_others(world, code):
    ids = unsent(world, "first", "bad", "last")
    world.smsru.codes = {"79000000001": code}
    totals = one_pass(world)
    assert (totals["sent"], totals["errors"]) == (2, {})
    assert received(world, "first") == received(world, "last") == 1
    make_due(world.app, ids[0], ids[2])
    assert one_pass(world)["delivered"] == 2


@pytest.mark.parametrize(("field", "to", "text"), [
    ("phone", "", "text"), ("phone", "call me", "text"), ("phone", "12", "text"),
    ("text", PHONE, ""), ("text", PHONE, " \n ")])
def test_what_cannot_be_sent_is_reported_as_failed(world, field, to, text):
    message_id = send(world, text, to)
    until(lambda: folder_of(world.app, message_id) == "failed")
    assert one_pass(world) == {**NOTHING, "failed": 1}
    assert history(world, message_id) == ["sent", "failed"]
    assert not world.smsru.sent or world.smsru.sent[-1]["msg"] != text


@pytest.mark.parametrize(("hours", "status"), [(23, None), (25, "failed")])
def test_an_unsent_message_is_given_up_after_24_hours(world, hours, status):
    message_id, = unsent(world, "too late")
    change(world.app, message_id, received=time.time() - hours * HOUR)
    world.smsru.down = True
    one_pass(world)
    make_due(world.app)
    one_pass(world)
    assert history(world, message_id)[1:] == ([status] if status else [])
    assert bool(world.app.queue()) == (status is None)


def test_what_has_waited_too_long_is_failed_while_the_operator_is_down(world):
    first, *old = unsent(world, "young", "old", "old too")
    for message_id in old:
        change(world.app, message_id, received=time.time() - 25 * HOUR)
    world.smsru.down = True
    assert one_pass(world)["errors"] == {"operator": "down"}
    assert len(calls(world.smsru, "/sms/send")) == 1
    end_rest(world.app)  # the rest is over, the first not due yet
    one_pass(world)
    assert one_pass(world)["failed"] == 2
    assert list(stored(world.app)) == [first]
    assert [history(world, one)[-1] for one in old] == ["failed", "failed"]


# After trouble sending rests ---------------------------------------------------------------------

def refused(code):
    return lambda method, path, fields: (200, {"status": "ERROR", "status_code": code}, {})


class Slowly:
    """Before each answer to /sms/send so many seconds; `most` is how many were there at once."""

    def __init__(self, world, seconds, answer=None):
        self.seconds, self.answer, self.lock = seconds, answer, threading.Lock()
        self.now, self.most, self.began = 0, 0, []
        world.smsru.trouble = self

    def __call__(self, method, path, fields):
        if not path.endswith("/sms/send"):
            return None
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.began.append((self.now, fields["msg"]))
        threading.Event().wait(self.seconds)
        with self.lock:
            self.now -= 1
        return self.answer and self.answer(method, path, fields)


RESTS = {"down": page(503), "busy": page(429), "in doubt": page(502), "key": refused(200),
         "money": refused(201), "limit": refused(206)}


@pytest.mark.parametrize("outcome", RESTS)
def test_the_first_after_a_rest_goes_alone_and_costs_one_request(world, outcome):
    ids = unsent(world, *map(str, range(20)))
    meter = Slowly(world, 0.2, RESTS[outcome])  # long enough for a second to come meanwhile
    for requests in (1, 2, 3):
        assert one_pass(world)["errors"] == {"operator": outcome}
        one_pass(world)  # sending rests
        assert len(meter.began) == requests
        end_rest(world.app)
    assert [text for _, text in meter.began] == ["0", "1", "2"], "the longest waiting first"
    assert {outcomes(world.app, one)[0] for one in ids[:3]} == {outcome}
    assert {folder_of(world.app, one) for one in ids} == {"new"}


def test_once_one_is_accepted_the_others_go_eight_at_a_time(world):
    unsent(world, *map(str, range(25)))
    meter = Slowly(world, 0.4)
    assert one_pass(world)["sent"] == 25
    assert [together for together, _ in meter.began[:2]] == [1, 1], "the first one goes alone"
    assert meter.most == 8


@pytest.mark.parametrize(("code", "outcome"), [(207, "failed"), (230, "later")])
def test_the_first_that_is_accepted_ends_going_alone(world, code, outcome):
    """What is refused by itself says nothing about the account; what was not asked, even less."""
    ids = unsent(world, "", *map(str, range(20)))
    world.smsru.codes = {"79000000001": code}
    meter = Slowly(world, 0.2, lambda method, path, fields: (
        page(502)(method, path, fields) if fields["msg"] != "0" else None))
    one_pass(world)
    assert [text for _, text in meter.began] == ["0", "1"]
    assert [outcomes(world.app, one) for one in ids[:3]] == [["failed"], [outcome], ["in doubt"]]


def test_trouble_in_the_middle_of_a_round_lets_the_rest_of_it_wait(world):
    unsent(world, *map(str, range(40)))
    world.smsru.balance = 4 * COST
    assert one_pass(world)["errors"] == {"operator": "money"}
    assert len(world.smsru.sent) == 4
    assert len(calls(world.smsru, "/sms/send")) <= 4 + 8, "so many are under way at a time"
    assert one_pass(world)["sent"] == 0


def test_a_rest_holds_for_every_process_and_for_new_messages(world):
    unsent(world, "first")
    world.smsru.down = True
    one_pass(world)
    world.smsru.down = False
    message_id = send(world, "new")
    code, _ = world.app.run("statuses")
    assert (code, one_pass(world)["errors"]) == (1, {"operator": "down"})
    assert folder_of(world.app, message_id) == "new"
    assert not world.smsru.sent
    assert len(calls(world.smsru, "/sms/send")) == 1


def key_refused(world, *texts):
    """The first of these meets a refused key, the others wait with it; then it is mended."""
    world.smsru.keys = set()
    send(world, texts[0])
    rested(world.app)
    for text in texts[1:]:
        send(world, text)
    world.smsru.keys = {GOOD_KEY}


def test_save_ends_a_rest(world):
    key_refused(world, "met the refusal", "waits with it")
    assert install(world).status_code == 200
    until(lambda: received(world, "waits with it"))


def test_after_save_the_new_key_is_tried_at_once_with_what_met_the_old(world):
    key_refused(world, "met the refusal")
    assert install(world).status_code == 200
    until(lambda: received(world, "met the refusal"))


# An operator that is silent, or hangs ------------------------------------------------------------

@pytest.fixture
def quick():
    """An app by itself, as it runs every day, but a hundred times as fast."""
    with World() as world:
        world.start_app(RETRY_AFTER=1, STATUSES_EVERY=0.2)
        assert install(world).status_code == 200
        world.smsru.delay = 0
        yield world


def test_an_operator_silent_for_minutes_costs_a_doubt_a_rest_and_hardly_a_message(quick):
    """A second is a minute here: it accepts, says nothing for half of one, and the line breaks."""
    well, ids, began = threading.Event(), [], time.monotonic()

    def silent(method, path, fields):
        if path.endswith("/sms/send") and not well.is_set():
            quick.smsru.send(path, fields)
            well.wait(0.5)
            raise ConnectionResetError
    quick.smsru.trouble = silent
    for number in range(20):
        ids.append(send(quick, f"one of 20: {number}"))
        well.wait(0.4)  # until the next one comes
    minutes = time.monotonic() - began
    well.set()
    assert 3 <= len(calls(quick.smsru, "/sms/send")) <= minutes / 1.5 + 2
    until(lambda: not quick.app.queue(), 60, "messages stay in the queue")
    ends = [history(quick, one)[-1] for one in ids]
    assert set(ends) <= {"delivered", "failed"}
    assert ends.count("failed") <= 2
    for message_id in ids:
        times = received(quick, quick.portal.messages[message_id]["body"])
        assert times == 1 or (times == 2 and doubted(quick.app, message_id))


def test_while_the_operator_hangs_on_one_number_the_others_of_its_round_go_on(world):
    unsent(world, "first", "hangs", *map(str, range(20)))
    gate, answer = Gate(world.smsru, "/sms/send"), world.smsru.trouble
    world.smsru.trouble = lambda method, path, fields: (
        answer(method, path, fields) if fields.get("msg") == "hangs" else None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one_pass, world)
        until(lambda: len(world.smsru.sent) == 21)
        assert not running.done()
        gate.open.set()
        assert running.result()["sent"] == 22


def test_an_operator_that_hangs_on_one_number_holds_the_others_up_for_half_a_minute(quick):
    """The worst case: that one is the first, so it goes alone. 30 s of silence are a doubt."""
    hold = threading.Event()

    def trouble(method, path, fields):
        if fields.get("to") == NUMBER:
            hold.wait(60)
    quick.smsru.trouble = trouble
    hangs, began = send(quick, "hangs", PHONE), time.monotonic()
    until(lambda: calls(quick.smsru, "/sms/send"))
    others = [send(quick, f"other {number}", f"+7911000{number:04}") for number in range(10)]
    until(lambda: all(history(quick, one)[-1] == "delivered" for one in others), 60)
    assert 20 < time.monotonic() - began < 60
    assert outcomes(quick.app, hangs) == ["in doubt"]
    assert read(quick.app, hangs)["in_doubt"] is True
    hold.set()
