"""data/queue: nothing lost, nothing doubled, little kept. Real processes, killed for real."""
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pretend import install, until
from steps import (
    DAY,
    HOUR,
    NUMBER,
    PHONE,
    Gate,
    another,
    code_of,
    cut,
    doubted,
    folder_of,
    handler_url,
    history,
    idle,
    make_due,
    one_pass,
    outcomes,
    path_of,
    received,
    rested,
    send,
    send_many,
    settled,
    stored,
    tried,
    work_off,
)

RETRY_AFTER = 0.2  # seconds: a failed try is due again soon


@pytest.fixture
def queue(shared):
    shared.smsru.delay = 1.0
    return shared


# Nothing doubled ---------------------------------------------------------------------------------

@pytest.mark.parametrize("down", [True, False], ids=["while unsent", "while on its way"])
def test_a_repeated_message_id_is_not_sent_again_while_the_first_waits(queue, down):
    queue.smsru.down, queue.smsru.delay = down, 0
    message_id = send(queue, "once")
    if down:
        tried(queue.app, message_id)
    else:
        settled(queue.app, message_id)
    before = stored(queue.app)
    assert send(queue, "another text", message_id=message_id) == message_id
    assert stored(queue.app) == before
    queue.smsru.down = False
    work_off(queue)
    assert [one["msg"] for one in queue.smsru.sent] == ["once"]
    assert history(queue, message_id)[-1] == "delivered"


def test_a_message_that_comes_again_while_the_operator_has_it_in_hand_is_dropped(queue):
    queue.smsru.delay, gate = 0, Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "in hand")
    until(lambda: gate.asked)
    send(queue, "once more", message_id=message_id)
    gate.open.set()
    settled(queue.app, message_id)
    until(lambda: not path_of(queue.app, message_id, "new").exists())
    work_off(queue)
    assert [one["msg"] for one in queue.smsru.sent] == ["in hand"]


def test_a_message_id_that_has_left_the_queue_is_a_genuine_resend(queue):
    queue.smsru.delay = 0
    message_id = send(queue, "first")
    settled(queue.app, message_id)
    one_pass(queue)
    assert not queue.app.queue()
    send(queue, "second", message_id=message_id)
    until(lambda: received(queue, "second"))


def test_simultaneous_repeats_at_two_processes_reach_the_operator_once(queue):
    urls = [handler_url(queue), handler_url(queue, another(queue))] * 12
    fields = queue.portal.message_fields(PHONE, "one", "simultaneous", code_of(queue))
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = list(pool.map(lambda url: queue.portal.deliver(url, fields), urls))
    assert set(answers) == {200}
    settled(queue.app, "simultaneous")
    make_due(queue.app)
    one_pass(queue)
    assert received(queue, "one") == 1


def test_several_processes_and_passes_send_each_message_once(queue):
    other, texts = another(queue), [f"text {number}" for number in range(40)]
    queue.smsru.down = True
    answers = send_many(queue, texts)
    assert {status for _, status in answers} == {200}
    until(lambda: outcomes(queue.app, None))
    queue.smsru.down = False
    make_due(queue.app)
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(one_pass, queue, app) for app in (queue.app, other) * 2]
        running += [pool.submit(queue.app.run, "statuses") for _ in range(2)]
    assert all(one.result() for one in running)
    idle(queue.app)
    make_due(queue.app)
    one_pass(queue)
    assert sorted(one["msg"] for one in queue.smsru.sent) == sorted(texts)


def test_a_message_in_hand_is_left_alone_by_other_processes(queue):
    gate = Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "in hand")
    until(lambda: gate.asked)
    totals = one_pass(queue, another(queue))
    assert (totals["sent"], totals["waiting"]) == (0, 1)
    gate.open.set()
    settled(queue.app, message_id)
    assert len(gate.asked) == received(queue, "in hand") == 1


def test_two_processes_that_pass_and_send_at_once_to_a_slow_operator_send_each_message_once(queue):
    queue.smsru.slow, queue.smsru.delay = 0.2, 0
    apps = [another(queue, STATUSES_EVERY=0.1) for _ in range(2)]
    urls = [handler_url(queue, app) for app in apps]
    texts = [f"to either {number}" for number in range(30)]
    fields = [queue.portal.message_fields(PHONE, text, f"either-{number}", code_of(queue))
              for number, text in enumerate(texts)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(queue.portal.deliver, urls * 15, fields)
        passes = [pool.submit(one_pass, queue, app) for app in apps * 3]
    assert set(answers) == {200}
    assert all(one.result() for one in passes)
    until(lambda: not queue.app.queue(), 30, "messages stay in the queue")
    assert sorted(one["msg"] for one in queue.smsru.sent) == sorted(texts)
    assert not any(doubted(queue.app, f"either-{number}") for number in range(30))


def test_whoever_sends_looks_again_after_letting_go(queue):
    """What came to another process meanwhile, which found the lock taken, needs no pass."""
    other, gate = another(queue), Gate(queue.smsru, "/sms/send")
    send(queue, "in hand")
    until(lambda: gate.asked)
    fields = queue.portal.message_fields(PHONE, "meanwhile", "meanwhile", code_of(queue))
    assert queue.portal.deliver(handler_url(queue, other), fields) == 200
    totals = one_pass(queue, other)  # by now the other one has seen that the lock is taken
    assert (totals["sent"], totals["waiting"]) == (0, 2)
    other.stop()
    gate.open.set()
    settled(queue.app, "meanwhile")
    assert [one["msg"] for one in queue.smsru.sent] == ["in hand", "meanwhile"]


def test_a_killed_process_leaves_its_message_in_doubt_and_the_lock_free(queue):
    gate = Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "orphan")
    until(lambda: gate.asked)
    queue.app.kill()
    queue.smsru.trouble = None
    other = another(queue)
    one_pass(queue, other)
    assert (outcomes(other, message_id), folder_of(other, message_id)) == (["in doubt"], "new")
    make_due(other)
    assert one_pass(queue, other)["sent"] == 1
    gate.open.set()


def test_a_killed_pass_leaves_its_message_in_doubt_and_the_lock_free(queue):
    queue.smsru.down = True
    message_id = send(queue, "cron")
    rested(queue.app)
    queue.smsru.down = False
    make_due(queue.app)
    gate = Gate(queue.smsru, "/sms/send")
    run = subprocess.Popen([sys.executable, str(queue.app.script), "statuses"], env=queue.app.env,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: gate.asked)
    run.kill()
    run.wait()
    gate.open.set()
    until(lambda: received(queue, "cron") == 1)
    one_pass(queue)
    assert outcomes(queue.app, message_id)[-1] == "in doubt"
    make_due(queue.app)
    assert one_pass(queue)["sent"] == 1


def test_killed_with_200_in_flight_every_accepted_message_arrives_once_or_is_in_doubt(queue):
    app, queue.smsru.slow, queue.smsru.delay = queue.app, 0.1, 0
    texts = [f"in flight {number}" for number in range(200)]
    with ThreadPoolExecutor(1) as pool:
        burst = pool.submit(send_many, queue, texts, 24)
        until(lambda: len(queue.smsru.sent) >= 40)
        app.kill()
        answers = burst.result()
    queue.smsru.slow = 0
    app.start()
    saved = {text: one for text, (one, status) in zip(texts, answers) if status == 200}
    assert len(saved) >= 40
    until(lambda: one_pass(queue)["waiting"] == 0, 60, "messages stay in the queue")
    for text, message_id in saved.items():
        times = received(queue, text)
        assert times == 1 or (times == 2 and doubted(app, message_id)), (text, times)
    in_doubt = [one for one in saved.values() if doubted(app, one)]
    assert 0 < len(in_doubt) <= 8, "so many are at the operator at a time"
    assert {queue.portal.messages[one]["status"] for one in saved.values()} == {"delivered"}


@pytest.mark.parametrize(("times", "status"), [(1, "delivered"), (5, "failed")])
def test_a_message_in_doubt_is_tried_once_more_and_never_more_often(queue, times, status):
    queue.smsru.delay = 0
    cut(queue, times)
    message_id = send(queue, "maybe")
    tried(queue.app, message_id)
    work_off(queue)
    assert received(queue, "maybe") == 2
    assert doubted(queue.app, message_id)
    assert history(queue, message_id) == ["sent", status]


def test_a_crash_and_a_cut_line_count_together(queue):
    gate = Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "twice")
    until(lambda: gate.asked)
    queue.app.kill()
    gate.open.set()
    until(lambda: received(queue, "twice"))
    cut(queue, 5)
    queue.app.start()
    work_off(queue)
    assert received(queue, "twice") == 2
    assert outcomes(queue.app, message_id) == ["in doubt", "in doubt"]
    assert history(queue, message_id)[-1] == "failed"


# Nothing lost ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "age", "stays"), [
    ("young.tmp", HOUR / 2, True), ("old.tmp", 2 * HOUR, False),
    ("queue/notes.txt", 15 * DAY, True),
    ("queue/young.unreadable", 13 * DAY, True), ("queue/old.unreadable", 15 * DAY, False)])
def test_leftovers_are_ignored_and_swept_when_old(queue, name, age, stays):
    path = queue.app.data / name
    path.write_text('{"message_id": "leftover", "to": "+79990000000", "text": "leftover"}')
    os.utime(path, (time.time() - age,) * 2)
    try:
        one_pass(queue)
        assert path.exists() == stays
        assert not received(queue, "leftover")
    finally:
        path.unlink(missing_ok=True)


def test_a_folder_in_the_queue_does_not_end_the_passes(queue):
    folder = queue.app.data / "queue" / "folder.unreadable"
    folder.mkdir()
    os.utime(folder, (time.time() - 15 * DAY,) * 2)
    try:
        assert one_pass(queue)["errors"] == {}
    finally:
        folder.rmdir()


RECORDER = """
import os

QUEUE = os.environ["DATA_DIR"] + "/queue/"

def noted(name, real):
    def call(*args, **more):
        result = real(*args, **more)
        what = "/".join(str(args[-1]).split("/")[-2:])
        if name == "flush":
            there = [one for one in ("new", "sending") if os.path.exists(QUEUE + one)
                     and os.path.samestat(os.fstat(args[0]), os.stat(QUEUE + one))]
            what = there[0] if there else "file"
        with open({log!r}, "a") as file:
            file.write(name + " " + what + "\\n")
        return result
    return call

os.fsync = noted("flush", os.fsync)
os.link, os.rename, os.replace = (noted("place", f) for f in (os.link, os.rename, os.replace))
"""


def test_what_counts_is_flushed_before_anybody_relies_on_it(world, tmp_path):
    """Before 200: the file, then its folder. Before the operator: the folder of what is tried."""
    log = tmp_path / "calls"
    (tmp_path / "sitecustomize.py").write_text(RECORDER.format(log=str(log)))
    world.start_app(PYTHONPATH=tmp_path, RETRY_AFTER=60, STATUSES_EVERY=0)
    assert install(world).status_code == 200
    idle(world.app)
    gate = Gate(world.smsru, "/sms/send")
    log.write_text("")
    message_id = send(world, "durable")
    before_200 = log.read_text().splitlines()
    until(lambda: gate.asked)
    before_asked = log.read_text().splitlines()
    gate.open.set()
    place = before_200.index(f"place new/{message_id}.json")
    assert "flush file" in before_200[:place]
    assert "flush new" in before_200[place:]
    taken = before_asked.index(f"place sending/{message_id}.json")
    assert "flush sending" in before_asked[taken:]
    settled(world.app, message_id)
    recorded = log.read_text().splitlines()[len(before_asked):]
    assert "flush file" in recorded[:recorded.index(f"place sent/{message_id}.json")]


# Little kept -------------------------------------------------------------------------------------

def test_text_and_number_leave_the_disk_once_the_operator_has_them(queue):
    secret = "Секретное слово: капибара"
    queue.smsru.down = True
    message_id = send(queue, secret)
    rested(queue.app)
    assert stored(queue.app)[message_id]["text"] == secret
    queue.smsru.down = False
    make_due(queue.app)
    one_pass(queue)
    assert list(stored(queue.app)) == [message_id]
    words = re.compile("капибара|" + json.dumps("капибара")[1:-1].replace("\\", "\\\\")
                       + "|" + re.sub(r"(\d)", r"\1\\D*", NUMBER[1:]))
    for path in [one for one in queue.app.data.rglob("*") if one.is_file()]:
        assert not words.search(path.read_text("utf-8")), path
    assert not words.search(queue.app.output())
