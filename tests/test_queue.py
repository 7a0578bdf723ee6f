"""data/queue: nothing lost, nothing doubled, little kept. Real processes, killed for real.

The first half are tools that the other tests share: they see the queue as its files, move time by
changing these files between passes, and make the operator slow or silent.
"""
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests
from portal import World, install, until
from test_portal import SENDER

PHONE, NUMBER = "+7 (925) 507-06-02", "79255070602"
DAY = 24 * 3600


def handler_url(world, app=None):
    """The address that the app registered at the portal, at another process of it if asked for."""
    url = world.portal.senders[SENDER["CODE"]]["HANDLER"]
    return url if app is None else url.replace(world.portal.app_url, app.url)


def one_pass(world, app=None):
    """One pass over HTTP; its totals."""
    url = handler_url(world, app).replace("/handler?", "/statuses?")
    answer = requests.get(url, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(world, text, to=PHONE, **more):
    """The portal calls the handler; returns the message_id."""
    message_id, status = world.portal.send_message(to, text, **more)
    assert status == 200
    return message_id


def path_of(app, message_id):
    return app.data / "queue" / f"{message_id}.json"


def read(app, message_id):
    return json.loads(path_of(app, message_id).read_text("utf-8"))


def stored(app):
    """What waits: {message_id: the file's JSON}."""
    found = {}
    for path in app.queue():
        with suppress(FileNotFoundError):
            found[path.stem] = read(app, path.stem)
    return found


def change(app, message_id, **news):
    """Rewrite a waiting message between two passes, and make it due."""
    path = path_of(app, message_id)
    path.write_text(json.dumps({**read(app, message_id), **news}), "utf-8")
    make_due(app, message_id)


def make_due(app, *message_ids):
    """Let the pauses of these messages, or of all that still wait, be over."""
    for path in [path_of(app, one) for one in message_ids] or app.queue():
        with suppress(FileNotFoundError):
            os.utime(path, (time.time() - 60,) * 2)


def pause(app, message_id):
    """How many seconds from now the message is due."""
    return path_of(app, message_id).stat().st_mtime - time.time()


def logged(app, kind, message_id=None):
    """The log's lines of one type, about one message if asked for."""
    lines = [json.loads(line) for path in sorted((app.data / "logs").glob("*.log"))
             for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines
            if line["type"] == kind and message_id in (None, line.get("message_id"))]


def doubted(app, message_id):
    """Say whether the log calls this message in doubt, as a line of its own or as an outcome."""
    return bool(logged(app, "in doubt", message_id) or "in doubt" in [
        line["outcome"] for line in logged(app, "send", message_id)])


def tried(app, message_id, times=1):
    """Wait until so many tries to send this message have failed, and are written down."""
    until(lambda: len(logged(app, "send", message_id)) >= times
          and read(app, message_id)["tries"] >= times, message="it was not tried")


def settled(app, *message_ids):
    """Wait until the operator's ids of these messages are on disk."""
    until(lambda: all(read(app, one)["operator_id"] for one in message_ids),
          message="it was not sent")


def received(world, text):
    """How often the operator accepted this text."""
    return sum(one["msg"] == text for one in world.smsru.sent)


def calls(party, path):
    """The fields of every request for this path, in their order."""
    return [fields for asked, fields in party.requests if asked.endswith(path)]


class Gate:
    """Holds the requests for one path until it is opened; `asked` says which came so far."""

    def __init__(self, party, path):
        self.path, self.asked, self.open = path, [], threading.Event()
        party.trouble = self

    def __call__(self, method, path, fields):
        if path.endswith(self.path):
            self.asked.append(fields)
            self.open.wait(20)


def cut(world, times):
    """The operator accepts, and the line breaks before its answer, so many times."""
    left = list(range(times))

    def trouble(method, path, fields):
        if path == "/sms/send" and left:
            left.pop()
            world.smsru.send(path, fields)
            raise ConnectionResetError
    world.smsru.trouble = trouble


@pytest.fixture(scope="module")
def one_world():
    with World() as world:
        world.start_app(RETRY_AFTER=0.2, STATUSES_EVERY=0)
        assert install(world).status_code == 200
        yield world


@pytest.fixture
def queue(one_world):
    """One installed world, as good as new for each test; a failed try is due again soon."""
    world, operator = one_world, one_world.smsru
    yield world
    for app in [one for one in world.apps if one is not world.app]:
        app.close()
    operator.down, operator.slow, operator.delay, operator.trouble = False, 0, 1.0, None
    operator.sent.clear()
    forget(world.app)
    if not world.app.running:
        world.app.start()


def forget(app):
    """Nothing waits, and the log is empty; its file stays, as the app has it open."""
    for path in (app.data / "queue").iterdir():
        path.unlink()
    for path in (app.data / "logs").iterdir():
        os.truncate(path, 0)


def another(world):
    """A second process of the app, on the same DATA_DIR."""
    return world.new_app(DATA_DIR=world.app.data, RETRY_AFTER=0.2, STATUSES_EVERY=0).start()


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
    make_due(queue.app)
    one_pass(queue)
    make_due(queue.app)
    one_pass(queue)
    assert [one["msg"] for one in queue.smsru.sent] == ["once"]
    assert queue.portal.messages[message_id]["history"][-1] == "delivered"


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
    fields = queue.portal.message_fields(PHONE, "one", "simultaneous", SENDER["CODE"])
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
    messages = [(PHONE, text) for text in texts]
    for (message_id, status) in queue.portal.send_many(messages):
        assert status == 200
        tried(queue.app, message_id)
    queue.smsru.down = False
    make_due(queue.app)
    with ThreadPoolExecutor(6) as pool:
        passes = [pool.submit(one_pass, queue, app) for app in (queue.app, other) * 2]
        passes += [pool.submit(queue.app.run, "statuses") for _ in range(2)]
    assert all(one.result() for one in passes)
    until(lambda: len(queue.smsru.sent) >= len(texts))
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


def test_a_claim_dies_with_its_owner(queue):
    gate = Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "orphan")
    until(lambda: gate.asked)
    queue.app.kill()
    queue.smsru.trouble = None
    other = another(queue)
    assert one_pass(queue, other)["sent"] == 1
    assert doubted(other, message_id)
    gate.open.set()


def test_a_killed_pass_leaves_its_message_in_doubt_and_its_lock_free(queue):
    queue.smsru.down = True
    message_id = send(queue, "cron")
    tried(queue.app, message_id)
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
    assert one_pass(queue)["sent"] == 1
    assert doubted(queue.app, message_id)


def test_killed_with_200_in_flight_every_accepted_message_arrives_once_or_is_in_doubt(queue):
    app, queue.smsru.slow, queue.smsru.delay = queue.app, 0.1, 0
    texts = [f"in flight {number}" for number in range(200)]
    with ThreadPoolExecutor(1) as pool:
        burst = pool.submit(queue.portal.send_many, [(PHONE, text) for text in texts], 24)
        until(lambda: len(queue.smsru.sent) >= 40)
        app.kill()
        answers = burst.result()
    queue.smsru.slow = 0
    app.start()
    saved = {text: one for text, (one, status) in zip(texts, answers) if status == 200}
    assert len(saved) >= 40
    until(lambda: one_pass(queue)["waiting"] == 0, 20, "messages stay in the queue")
    for text, message_id in saved.items():
        times = received(queue, text)
        assert times == 1 or (times == 2 and doubted(app, message_id)), (text, times)
    in_doubt = [one for one in saved.values() if doubted(app, one)]
    assert 0 < len(in_doubt) < len(saved) / 2
    assert {queue.portal.messages[one]["status"] for one in saved.values()} == {"delivered"}


@pytest.mark.parametrize(("times", "status"), [(1, "delivered"), (5, "failed")])
def test_a_message_in_doubt_is_tried_once_more_and_never_more_often(queue, times, status):
    queue.smsru.delay = 0
    cut(queue, times)
    message_id = send(queue, "maybe")
    tried(queue.app, message_id)
    for _ in range(6):
        make_due(queue.app)
        one_pass(queue)
    assert received(queue, "maybe") == 2
    assert doubted(queue.app, message_id)
    assert not queue.app.queue()
    assert queue.portal.messages[message_id]["history"] == ["sent", status]


def test_a_crash_and_a_cut_line_count_together(queue):
    gate = Gate(queue.smsru, "/sms/send")
    message_id = send(queue, "twice")
    until(lambda: gate.asked)
    queue.app.kill()
    gate.open.set()
    until(lambda: received(queue, "twice"))
    cut(queue, 5)
    queue.app.start()
    one_pass(queue)
    for _ in range(3):
        make_due(queue.app)
        one_pass(queue)
    assert received(queue, "twice") == 2
    assert doubted(queue.app, message_id)


# Nothing lost ------------------------------------------------------------------------------------

BROKEN = {"empty": b"", "cut": b'{"message_id": "cut", "to', "list": b"[]", "null": b"null",
          "no-fields": b"{}", "few-fields": b'{"received": 1, "sent": 0}', "bytes": b"\xff\xfe\x00",
          "deep": b"[" * 100000, "ours-few-fields": b"{OURS}",
          "ours-wrong-types": b'{OURS, "message_id": "ours-wrong-types", "received": null, '
                              b'"sent": "", "tries": [], "doubts": {}, "to": 7, "text": 7, '
                              b'"operator_id": "", "status": ""}'}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_file_is_set_aside_and_the_pass_goes_on(queue, name):
    app, queue.smsru.down = queue.app, True
    message_id = send(queue, f"after {name}")
    tried(app, message_id)
    queue.smsru.down = False
    make_due(app, message_id)
    ours = {field: read(app, message_id)[field] for field in ("member_id", "operator", "code")}
    ours = json.dumps(ours)[1:-1].encode()
    path_of(app, name).write_bytes(BROKEN[name].replace(b"OURS", ours))
    os.utime(path_of(app, name), (2, 2))  # the first in the pass
    assert one_pass(queue)["sent"] == 1
    assert received(queue, f"after {name}") == 1
    assert not path_of(app, name).exists()
    assert [one for one in (app.data / "queue").glob("*.unreadable") if name in one.name]
    assert logged(app, "unreadable", name)


@pytest.mark.parametrize(("name", "age", "stays"), [
    ("queue/young.tmp", 10, True), ("queue/old.tmp", 2 * DAY, False), ("old.tmp", 2 * DAY, False),
    ("queue/notes.txt", 13 * DAY, True), ("queue/old.unreadable", 15 * DAY, False)])
def test_leftovers_are_ignored_and_swept_when_old(queue, name, age, stays):
    path = queue.app.data / name
    path.write_text('{"message_id": "leftover", "to": "+79990000000", "text": "leftover"}')
    os.utime(path, (time.time() - age,) * 2)
    one_pass(queue)
    assert path.exists() == stays
    assert not received(queue, "leftover")


@pytest.mark.parametrize("state", ["unsent", "on its way", "final"])
@pytest.mark.parametrize("field", ["member_id", "operator", "code"])
def test_what_belongs_to_another_is_left_alone(queue, field, state):
    name = f"{field}-{state}".replace(" ", "-")
    settings = json.loads((queue.app.data / "settings.json").read_text("utf-8"))
    message = {"message_id": name, "member_id": settings["member_id"], "operator": "smsru",
               "code": SENDER["CODE"], "received": time.time(), "to": NUMBER, "text": "not mine",
               "tries": 0, "doubts": 0, "operator_id": "", "sent": 0, "status": "", field: "other"}
    if state != "unsent":
        message.update(operator_id="202647-1", sent=time.time() - 100 * DAY, to="", text="")
    message["status"] = "delivered" if state == "final" else ""
    path = path_of(queue.app, name)
    path.write_text(json.dumps(message))
    make_due(queue.app, name)
    before, mtime = path.read_bytes(), path.stat().st_mtime
    queue.smsru.requests.clear()
    queue.portal.requests.clear()
    one_pass(queue)
    assert (path.read_bytes(), path.stat().st_mtime) == (before, mtime)
    assert not list(queue.smsru.requests)
    assert not list(queue.portal.requests)


RECORDER = """
import os, stat

def noted(name, real):
    def call(*args, **more):
        result = real(*args, **more)
        what = os.path.basename(str(args[-1]))
        if name == "flush":
            what = "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
        with open({log!r}, "a") as file:
            file.write(name + " " + what + "\\n")
        return result
    return call

os.fsync = noted("flush", os.fsync)
os.link, os.rename, os.replace = (noted("place", f) for f in (os.link, os.rename, os.replace))
"""


def test_200_means_written_aside_flushed_put_in_place_and_the_folder_flushed(world, tmp_path):
    log = tmp_path / "calls"
    (tmp_path / "sitecustomize.py").write_text(RECORDER.format(log=str(log)))
    world.start_app(PYTHONPATH=tmp_path, RETRY_AFTER=60, STATUSES_EVERY=0)
    assert install(world).status_code == 200
    gate = Gate(world.smsru, "/sms/send")
    log.write_text("")
    message_id = send(world, "durable")
    steps = log.read_text().splitlines()
    gate.open.set()
    place = f"place {message_id}.json"
    assert place in steps
    assert "flush file" in steps[:steps.index(place)]
    assert "flush folder" in steps[steps.index(place):]


# Little kept -------------------------------------------------------------------------------------

def test_text_and_number_leave_the_disk_once_the_operator_has_them(queue):
    secret = "Секретное слово: капибара"
    queue.smsru.down = True
    message_id = send(queue, secret)
    tried(queue.app, message_id)
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


def test_a_folder_in_the_queue_does_not_end_the_passes(queue):
    folder = queue.app.data / "queue" / "folder.unreadable"
    folder.mkdir()
    os.utime(folder, (time.time() - 15 * DAY,) * 2)
    try:
        assert one_pass(queue)["errors"] == {}
    finally:
        folder.rmdir()


@pytest.mark.parametrize(("age", "stays"), [(13 * DAY, True), (15 * DAY, False)])
def test_what_belongs_to_another_goes_after_14_days_with_a_line_in_the_log(queue, age, stays):
    queue.smsru.down = True
    message_id = send(queue, "another operator's")
    tried(queue.app, message_id)
    path = path_of(queue.app, message_id)
    path.write_text(json.dumps({**read(queue.app, message_id), "operator": "another",
                                "received": time.time() - age}))
    os.utime(path, (time.time() - age,) * 2)
    for _ in range(2):
        one_pass(queue)
    assert [one.name for one in path.parent.iterdir()] == [path.name] * stays
    assert len(logged(queue.app, "unreadable", message_id)) == (not stays)


def test_a_message_due_later_than_any_pause_is_due_now(queue):
    """The clock was set back by hours: the message must not wait until it is there again."""
    queue.smsru.down = True
    message_id = send(queue, "the clock was set")
    tried(queue.app, message_id)
    queue.smsru.down = False
    os.utime(path_of(queue.app, message_id), (time.time() + DAY,) * 2)
    assert one_pass(queue)["sent"] == 1
