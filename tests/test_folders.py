"""A message's folder says how far it is, whatever a crash, a copy or a broken disk left there.

What a kill leaves is laid down as files; and the app is really killed, before each of its steps.
"""
import os
import shutil
import subprocess
import time

import pytest
from pretend import until
from steps import (
    DAY,
    FOLDERS,
    NUMBER,
    another,
    calls,
    code_of,
    cut,
    doubted,
    folder_of,
    handler_url,
    history,
    lay,
    logged,
    one_pass,
    outcomes,
    path_of,
    received,
    send,
    work_off,
)

RETRY_AFTER = 0.2  # seconds: a failed try is due again soon


@pytest.fixture
def world(shared):
    return shared


def accepted(world, text="accepted before"):
    """What a file says of a message that the operator has."""
    sms_id = f"before-{len(world.smsru.sent)}"
    world.smsru.sent.append({"to": NUMBER, "msg": text, "sms_id": sms_id, "time": 0, "test": False})
    return {"to": "", "text": "", "operator_id": sms_id, "sent_at": time.time()}


def refused():
    return {"to": "", "text": "", "sent_at": time.time(), "status": "failed"}


def lay_in(world, folder, message_id, text):
    """A message as it lies in this folder when all is well."""
    more = {"sent": accepted(world), "failed": refused()}.get(folder, {})
    return lay(world, folder, message_id, **{"text": text, **more})


# In two folders ----------------------------------------------------------------------------------

PAIRS = {("new", "sending"): "delivered", ("new", "sent"): "delivered", ("new", "failed"): "failed",
         ("sending", "sent"): "delivered", ("sending", "failed"): "failed",
         ("sent", "failed"): "failed"}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_of_two_folders_the_later_counts(world, pair):
    for folder, text in zip(pair, ("the earlier", "the later")):
        lay_in(world, folder, "two", text)
    work_off(world)
    times = 1 if pair == ("new", "sending") else 0  # else the operator has it, or refused it
    assert (received(world, "the earlier"), received(world, "the later")) == (0, times)
    assert history(world, "two") == ["sent", PAIRS[pair]]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_of_two_folders_the_later_counts_for_a_repeated_message_too(world, pair):
    """It comes again while the first lies in two folders: 200, and no third text is sent."""
    for folder, text in zip(pair, ("the earlier", "the later")):
        lay_in(world, folder, "three", text)
    assert send(world, "once more", message_id="three")
    work_off(world)
    assert (received(world, "the earlier"), received(world, "once more")) == (0, 0)
    assert history(world, "three")[-1] == PAIRS[pair]


def test_in_all_folders_it_is_told_once_and_gone(world):
    for folder in FOLDERS:
        lay_in(world, folder, "everywhere", folder)
    work_off(world)
    assert history(world, "everywhere") == ["sent", "failed"]
    assert not calls(world.smsru, "/sms/send")


# What a kill leaves ------------------------------------------------------------------------------

def taken(world):
    lay(world, "sending", "left", "left")


def taken_again(world):
    lay(world, "sending", "left", "left", in_doubt=True)


def recorded(world):
    lay(world, "sending", "left", **accepted(world))


def recorded_without_id(world):
    lay(world, "sending", "left", **{**accepted(world), "operator_id": "", "status": "sent"})


def failure_recorded(world):
    lay(world, "sending", "left", **refused())


def doubt_written(world):
    lay(world, "sending", "left", "left")
    lay(world, "new", "left", "left", in_doubt=True)


def put_twice(world):
    """In its place, but its name aside not removed yet."""
    lay(world, "new", "left", "left")
    os.link(path_of(world.app, "left"), world.app.data / "left.tmp")


def told(world):
    lay(world, "sent", "left", **{**accepted(world), "status": "delivered"})
    world.portal.messages["left"]["history"].append("delivered")


LEFT = {  # what was left: (tries from now on, outcomes, told), each if the operator is well, if not
    taken: (1, ["in doubt", "sent"], "delivered", ["in doubt", "in doubt"], "failed"),
    taken_again: (0, ["in doubt"], "failed", ["in doubt"], "failed"),
    recorded: (0, [], "delivered", [], "delivered"),
    recorded_without_id: (0, [], "sent", [], "sent"),
    failure_recorded: (0, [], "failed", [], "failed"),
    doubt_written: (1, ["in doubt", "sent"], "delivered", ["in doubt", "in doubt"], "failed"),
    told: (0, [], "delivered", [], "delivered")}


@pytest.mark.parametrize("well", [True, False], ids=["well", "line breaks"])
@pytest.mark.parametrize("left", LEFT)
def test_what_a_kill_leaves_is_sent_once_more_at_most(world, left, well):
    left(world)
    times, if_well, ends_well, if_not, ends = LEFT[left]
    if not well:
        cut(world, 9)
    work_off(world)
    assert received(world, "left") == times
    assert outcomes(world.app, "left") == (if_well if well else if_not)
    assert history(world, "left")[-1] == (ends_well if well else ends)


def test_a_message_whose_name_aside_is_left_is_sent_once(world):
    put_twice(world)
    try:
        work_off(world)
        assert received(world, "left") == 1
    finally:
        (world.app.data / "left.tmp").unlink()


KILLER = """
import builtins, os, signal

left = int(os.environ["KILL_AT"])

def deadly(real):
    def call(*args, **more):
        global left
        if os.path.exists(os.environ["ARMED"]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call

for name in ("fsync", "link", "rename", "replace", "unlink"):
    setattr(os, name, deadly(getattr(os, name)))
builtins.open = deadly(open)
"""


@pytest.fixture
def killer(world, tmp_path):
    """The variables of an app that is killed for real, before its n-th step once it is armed."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    return {"PYTHONPATH": tmp_path, "ARMED": tmp_path / "armed", "DATA_DIR": world.app.data,
            "RETRY_AFTER": 0.2, "STATUSES_EVERY": 0}


def nothing(world):
    """The operator is well."""


def refuses(world):
    world.smsru.codes = {NUMBER: 207}


def breaks(world):
    cut(world, 1)


ENDS = {nothing: {"delivered"}, refuses: {"failed"}, breaks: {"delivered", "failed"}}


@pytest.mark.parametrize("meets", ENDS)
def test_a_pass_killed_before_any_of_its_steps_loses_and_doubles_nothing(world, killer, meets):
    killer["ARMED"].touch()
    killed, code = 0, -9
    while code == -9:
        text = message_id = f"{meets.__name__}-{killed}"
        lay(world, "new", message_id, text)
        meets(world)
        world.smsru.requests.clear()
        code, _ = world.new_app(**killer, KILL_AT=killed + 1).run("statuses")
        killed += code == -9
        work_off(world)
        assert received(world, text) <= 1 or doubted(world.app, message_id), killed
        assert len(calls(world.smsru, "/sms/send")) <= 2, killed
        assert history(world, message_id)[-1] in ENDS[meets], killed
        world.smsru.trouble = None
    assert killed >= 4, "it is taken, flushed, recorded and moved on"


def test_an_app_killed_before_any_step_of_taking_a_message_keeps_what_it_said_200_to(
        world, killer):
    answers, survived = [], False
    while not survived:
        killer["ARMED"].unlink(missing_ok=True)
        app = another(world, **killer, KILL_AT=len(answers) + 1)
        killer["ARMED"].touch()
        message_id = f"killed-{len(answers)}"
        answers.append(deliver(world, app, message_id))
        until(lambda app=app, one=message_id: not app.running or folder_of(app, one) == "sent")
        survived = app.running
        app.close()
        work_off(world)
        times = received(world, message_id)
        assert times <= 1 or (times == 2 and doubted(world.app, message_id))
        if answers[-1] == 200:
            assert history(world, message_id) == ["sent", "delivered"]
    assert (answers[0], answers[-1]) == (0, 200)
    assert len(answers) >= 8, "put in place and flushed, then as in a pass"


def deliver(world, app, message_id):
    """The portal calls this process of the app; the text is the id. Returns the HTTP status."""
    world.portal.messages[message_id] = {"code": code_of(world), "status": "sent", "author": 1,
                                         "history": ["sent"]}
    fields = world.portal.message_fields(NUMBER, message_id, message_id, code_of(world))
    return world.portal.deliver(handler_url(world, app), fields)


# What a disk or a person leaves ------------------------------------------------------------------

BROKEN = {"empty": b"", "cut": b'{"message_id": "cut", "to', "bytes": b"\xff\xfe\x00",
          "deep": b"[" * 100000}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_set_aside_and_the_pass_goes_on(world, folder, name):
    message_id = lay_in(world, folder, "whole", "whole")
    broken = path_of(world.app, name, folder)
    broken.write_bytes(BROKEN[name])
    os.utime(broken, (time.time() - 20 * DAY,) * 2)  # the first in the pass
    one_pass(world)
    work_off(world)
    one_pass(world)
    assert received(world, "whole") == (folder in ("new", "sending"))
    assert history(world, message_id)[-1] == ("failed" if folder == "failed" else "delivered")
    aside = world.app.data / "queue" / f"{name}.unreadable"
    assert aside.read_bytes() == BROKEN[name], "it is kept for 14 days from now"
    assert len(logged(world.app, "unreadable", name)) == 1
    os.utime(aside, (time.time() - 15 * DAY,) * 2)
    one_pass(world)
    assert not aside.exists()


def some_of_each(world):
    """Messages in every folder, two of them where a kill has left them; {message_id: end}."""
    ends = {"new-1": "delivered", "new-2": "delivered", "sending-1": "delivered",
            "sent-1": "delivered", "sent-2": "delivered", "failed-1": "failed"}
    for message_id in ends:
        lay_in(world, message_id.partition("-")[0], message_id, message_id)
    lay_in(world, "new", "sent-1", "a repeat of it")
    return ends


def assert_all_ended(world, ends):
    assert {one: history(world, one) for one in ends} == {
        one: ["sent", status] for one, status in ends.items()}
    texts = [one["msg"] for one in world.smsru.sent if one["msg"] != "accepted before"]
    assert sorted(texts) == ["new-1", "new-2", "sending-1"]


def test_when_every_mtime_is_lost_nothing_else_is(world):
    ends = some_of_each(world)
    for path in [world.app.data, *world.app.data.rglob("*")]:
        os.utime(path, (1, 1))
    until(lambda: one_pass(world)["waiting"] == 0)
    assert_all_ended(world, ends)


def test_a_copy_of_the_folder_works_on_in_a_new_process(world, tmp_path):
    ends = some_of_each(world)
    os.utime(world.app.data / "send.lock", (time.time() + DAY,) * 2)  # it rests; a copy doesn't
    world.app.kill()
    subprocess.run(["cp", "-r", world.app.data, tmp_path / "copy"], check=True)
    copy = another(world, DATA_DIR=tmp_path / "copy", STATUSES_EVERY=0.1)
    until(lambda: not copy.queue())
    assert_all_ended(world, ends)


def test_folders_that_are_missing_are_made_anew_at_the_start(world):
    world.app.stop()
    shutil.rmtree(world.app.data / "queue")
    world.app.start()
    message_id = send(world, "anew")
    until(lambda: folder_of(world.app, message_id) == "sent")
