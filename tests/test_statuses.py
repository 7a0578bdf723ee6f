"""statuses.php: bounded patience, few requests, and what the portal is told."""
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pretend import until
from steps import (
    DAY,
    HOUR,
    NOTHING,
    Gate,
    calls,
    change,
    folder_of,
    history,
    lay,
    logged,
    make_due,
    on_its_way,
    one_pass,
    page,
    path_of,
    pause,
    send,
    stored,
    unsent,
)

RETRY_AFTER = 100  # seconds


@pytest.fixture
def world(shared):
    return shared


def batches(world):
    """The statuses of each request to the portal: [{message_id: command}]."""
    return [{name[4:-1]: text for name, text in fields.items() if name.startswith("cmd[")}
            for fields in calls(world.portal, "batch.json")]


# Totals ------------------------------------------------------------------------------------------

def test_the_totals_say_what_happened(world):
    ids = on_its_way(world, "one", "two", "three", "four")
    world.smsru.delivery = {"79110000002": 104, "79110000003": 102}
    failed = send(world, "", "+79110000009")
    until(lambda: folder_of(world.app, failed) == "failed")
    unsent(world, "now")
    totals = one_pass(world)
    assert totals == {**NOTHING, "sent": 1, "delivered": 2, "undelivered": 1, "failed": 1,
                      "waiting": 2}
    assert [history(world, one)[1:] for one in ids] == [
        ["delivered"], ["delivered"], ["undelivered"], []]
    assert logged(world.app, "statuses")


def test_a_pass_over_an_empty_queue_asks_nobody(world):
    assert one_pass(world) == NOTHING
    assert not world.smsru.requests
    assert not world.portal.requests


@pytest.mark.parametrize("code", [-1, 100, 101, 102])
def test_only_final_statuses_are_told(world, code):
    message_id, = on_its_way(world, "moving")
    world.smsru.delivery = {"79110000000": code}
    assert one_pass(world) == {**NOTHING, "waiting": 1}
    assert not world.portal.requests
    assert stored(world.app)[message_id]["status"] == ""


# Bounded patience --------------------------------------------------------------------------------

@pytest.mark.parametrize(("age", "wait"), [(60, 6), (1000, 100), (10 * HOUR, HOUR),
                                           (60 * HOUR, HOUR)])
def test_an_older_message_is_asked_about_less_often(world, age, wait):
    message_id, = on_its_way(world, "slow")
    world.smsru.delivery = {"79110000000": 102}
    now = time.time()
    change(world.app, message_id, received=now - age, sent_at=now - age)
    one_pass(world)
    assert wait * 0.95 - 3 < pause(world.app, message_id) < wait * 1.05 + 3
    one_pass(world)
    assert len(calls(world.smsru, "/sms/status")) == 1


@pytest.mark.parametrize("code", [-1, 102])
@pytest.mark.parametrize(("hours", "status"), [(71, None), (73, "undelivered")])
def test_a_message_without_a_final_status_is_given_up_after_72_hours(world, hours, status, code):
    message_id, = on_its_way(world, "lost")
    world.smsru.delivery = {"79110000000": code}
    change(world.app, message_id, received=time.time() - hours * HOUR,
           sent_at=time.time() - hours * HOUR)
    one_pass(world)
    assert history(world, message_id)[1:] == ([status] if status else [])
    assert bool(world.app.queue()) == (status is None)


def test_the_hours_of_giving_up_can_be_set(world):
    lost, = on_its_way(world, "waiting")
    late, = unsent(world, "unsent")
    world.smsru.delivery = {"79110000000": 102}
    for message_id in (late, lost):
        change(world.app, message_id, received=time.time() - HOUR, sent_at=time.time() - HOUR)
    other = world.new_app(DATA_DIR=world.app.data, GIVE_UP_UNSENT=0.5, GIVE_UP_WAITING=0.5)
    for _ in range(2):
        make_due(other)
        other.run("statuses")
    assert (history(world, late)[-1], history(world, lost)[-1]) == ("failed", "undelivered")


# Few requests ------------------------------------------------------------------------------------

def test_100_ids_an_ask_and_50_statuses_a_batch(world):
    world.smsru.delay = 60
    on_its_way(world, "original")
    sent = world.smsru.sent[-1]
    for number in range(229):  # the operator and the portal know these as well
        sms_id = f"copied-{number}"
        lay(world, "sent", f"copy-{number}", "", operator_id=sms_id, sent_at=time.time())
        world.smsru.sent.append({**sent, "sms_id": sms_id})
    make_due(world.app)
    world.smsru.delay = 0
    assert one_pass(world) == {**NOTHING, "delivered": 230}
    asked = [len(fields["sms_id"].split(",")) for fields in calls(world.smsru, "/sms/status")]
    assert (sum(asked), len(asked), max(asked)) == (230, 3, 100)
    told = [len(one) for one in batches(world)]
    assert (sum(told), len(told), max(told)) == (230, 5, 50)
    assert not world.app.queue()


def test_one_pass_at_a_time_and_the_second_says_so(world):
    on_its_way(world, "alone")
    gate = Gate(world.smsru, "/sms/status")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(world.app.run, "statuses")
        until(lambda: gate.asked)
        code, output = world.app.run("statuses")
        over_http = one_pass(world)
        gate.open.set()
        assert first.result()[0] == 0
    assert (code, bool(json.loads(output)["note"]), bool(over_http["note"])) == (0, True, True)
    assert len(gate.asked) == 1
    assert json.loads(first.result()[1]) == {**NOTHING, "delivered": 1}


def test_the_lock_of_a_pass_dies_with_its_process(world):
    on_its_way(world, "dead hand")
    gate = Gate(world.smsru, "/sms/status")
    run = subprocess.Popen([sys.executable, str(world.app.script), "statuses"],
                           env=world.app.env, stdout=subprocess.DEVNULL)
    until(lambda: gate.asked)
    run.kill()
    run.wait()
    world.smsru.trouble = None
    gate.open.set()
    assert one_pass(world) == {**NOTHING, "delivered": 1}


@pytest.mark.parametrize("make", [unsent, on_its_way])
def test_files_that_vanish_under_a_pass_do_not_stop_it(world, make):
    ids = make(world, "stays", "vanishes", "stays too")
    gate = Gate(world.smsru, "/sms/send" if make is unsent else "/sms/status")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(one_pass, world)
        until(lambda: gate.asked)
        path_of(world.app, ids[1]).unlink()
        gate.open.set()
        totals = running.result()
    assert totals["errors"] == {}
    assert (totals["sent"], totals["waiting"]) == ((2, 2) if make is unsent else (0, 0))
    assert make is unsent or [history(world, one)[-1] for one in (ids[0], ids[2])] == [
        "delivered", "delivered"]


# What the portal answers -------------------------------------------------------------------------

def stop_portal(world):
    world.portal.stop()


def broken_portal(world):
    world.portal.trouble = lambda method, path, fields: (
        500, {"error": "INTERNAL_SERVER_ERROR", "error_description": "Internal error"}, {})


def proxy_page(world):
    world.portal.trouble = page(502)


def overloaded(world):
    world.portal.trouble = page(429)


@pytest.mark.parametrize("trouble", [stop_portal, broken_portal, proxy_page, overloaded])
def test_a_status_is_kept_while_the_portal_is_down_and_the_operator_is_not_asked_again(
        world, trouble):
    message_id, = on_its_way(world, "known")
    trouble(world)
    totals = one_pass(world)
    assert (totals["delivered"], totals["waiting"]) == (0, 1)
    assert totals["errors"]["portal"]
    assert stored(world.app)[message_id]["status"] == "delivered"
    world.portal.trouble = None
    if not world.portal.server:
        world.portal.start()
    make_due(world.app)
    assert one_pass(world) == {**NOTHING, "delivered": 1}
    assert len(calls(world.smsru, "/sms/status")) == 1
    assert history(world, message_id) == ["sent", "delivered"]


def test_portal_trouble_does_not_stop_sending(world):
    unsent(world, "x", "y", "z")
    lay_finals(world, "sent", 120)  # more than one helping of statuses
    broken_portal(world)
    totals = one_pass(world)
    assert (totals["sent"], totals["waiting"]) == (3, 123)
    assert list(totals["errors"]) == ["portal"]
    assert len(world.portal.requests) == 1, "a portal in trouble is not pressed"


def lay_finals(world, folder, count):
    """So many messages whose end is known, and the portal is to be told."""
    status = {"sent": "delivered", "failed": "failed"}[folder]
    for number in range(count):
        lay(world, folder, f"{folder}-{number}", "", status=status, sent_at=time.time())


@pytest.mark.parametrize("trouble", [broken_portal, overloaded])
def test_an_error_of_the_whole_call_ends_the_telling_for_this_pass(world, trouble):
    for folder in ("failed", "sent"):
        lay_finals(world, folder, 2)
    on_its_way(world, "not known yet")
    trouble(world)
    assert one_pass(world)["waiting"] == 5
    assert len(batches(world)) == 1


def refuse(world, refused):
    """The portal answers a batch: {message_id: error} for these, true for the others."""
    def trouble(method, path, fields):
        if path.endswith("batch.json"):
            names = [name[4:-1] for name in fields if name.startswith("cmd[")]
            done = {name: True for name in names if name not in refused}
            errors = {name: {"error": refused[name], "error_description": "no"} for name in names
                      if name in refused}
            return 200, {"result": {"result": done or [], "result_error": errors or []}}, {}
    world.portal.trouble = trouble


@pytest.mark.parametrize("error", ["ERROR_MESSAGE_NOT_FOUND", "ERROR_MESSAGE_STATUS_INCORRECT"])
def test_a_message_the_portal_will_never_take_is_dropped_with_a_line_in_the_log(world, error):
    first = on_its_way(world, "unknown", "known")[0]
    refuse(world, {first: error})
    assert one_pass(world) == {**NOTHING, "delivered": 1}
    assert not stored(world.app)
    assert [line["message_id"] for line in logged(world.app, "dropped")] == [first]


def test_the_pretend_portal_says_so_itself(world):
    message_id, = on_its_way(world, "forgotten")
    del world.portal.messages[message_id]
    assert one_pass(world) == NOTHING
    assert logged(world.app, "dropped", message_id)[0]["error"] == "ERROR_MESSAGE_NOT_FOUND"


def test_an_error_that_may_heal_keeps_the_message_and_the_others_go(world):
    first = on_its_way(world, "refused", "taken")[0]
    refuse(world, {first: "ERROR_CORE"})
    totals = one_pass(world)
    assert (totals["delivered"], list(stored(world.app))) == (1, [first])
    assert totals["errors"] == {"portal": "ERROR_CORE"}
    world.portal.trouble = None
    make_due(world.app)
    assert one_pass(world) == {**NOTHING, "delivered": 1}


@pytest.mark.parametrize("error", ["ERROR_CORE", "OPERATION_TIME_LIMIT", "insufficient_scope",
                                   "invalid_token"])
def test_a_status_refused_by_itself_waits_by_itself(world, error):
    lay_finals(world, "sent", 201)  # three times up to 100, in batches of 50
    refused = [f"sent-{number}" for number in range(0, 201, 20)]
    refuse(world, dict.fromkeys(refused, error))
    totals = one_pass(world)
    assert totals["errors"]["portal"].partition(":")[0] == error
    assert (len(batches(world)), totals["delivered"]) == (5, 190)
    assert sorted(stored(world.app)) == sorted(refused)
    assert all(90 < pause(world.app, one) <= 100 for one in refused)
    one_pass(world)
    assert len(batches(world)) == 5, "not due yet"


@pytest.mark.parametrize(("days", "stays"), [(13, True), (15, False)])
def test_after_14_days_a_message_goes_with_a_line_in_the_log(world, days, stays):
    message_id, = on_its_way(world, "old")
    broken_portal(world)
    one_pass(world)
    change(world.app, message_id, received=time.time() - days * DAY)
    one_pass(world)
    assert (message_id in stored(world.app)) == stays
    assert bool(logged(world.app, "dropped", message_id)) != stays


# python app.py statuses --------------------------------------------------------------------------

@pytest.mark.parametrize(("trouble", "code", "errors"), [
    (None, 0, set()), ("operator", 1, {"operator"}), ("portal", 1, {"portal"})])
def test_the_command_line_prints_the_totals_and_exits_1_on_trouble(world, trouble, code, errors):
    on_its_way(world, "by cron")
    world.smsru.down = trouble == "operator"
    if trouble == "portal":
        broken_portal(world)
    exit_code, output = world.app.run("statuses")
    assert (exit_code, set(json.loads(output)["errors"])) == (code, errors)
    assert set(json.loads(output)) == set(NOTHING)


def test_before_the_installation_a_pass_says_so_and_exits_1(world):
    app = world.new_app()
    exit_code, output = app.run("statuses")
    assert (exit_code, set(json.loads(output)["errors"])) == (1, {"portal"})


def test_passes_run_by_themselves_inside_the_app(world):
    app = world.new_app(DATA_DIR=world.app.data, STATUSES_EVERY=0.1).start()
    message_id, = on_its_way(world, "by itself")
    until(lambda: history(world, message_id) == ["sent", "delivered"])
    assert app.stop() == 0


@pytest.mark.parametrize("down", [True, False])
def test_an_operator_in_trouble_is_asked_once_a_pass(world, down):
    for number in range(250):
        lay(world, "sent", f"m{number}", "", operator_id=f"1-{number}", sent_at=time.time())
    world.smsru.down, world.smsru.refuse = down, 200
    assert one_pass(world)["errors"] == {"operator": "down" if down else "key"}
    assert len(calls(world.smsru, "/sms/status")) == 1
