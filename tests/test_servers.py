"""The same app under servers made for production: waitress, and gunicorn with four workers."""
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from pretend import PHONE, ROOT, TEXT, App, World, install, until
from steps import calls, code_of, doubted, forget, handler_url, received, send

SERVERS = {  # without nginx in front, waitress would stop at 100 connections that are kept open
    "waitress": ["waitress", "--threads=16", "--connection-limit=1000",
                 "--listen=127.0.0.1:{port}", "app:app"],
    "gunicorn": ["gunicorn", "--workers=4", "--threads=8", "--bind=127.0.0.1:{port}",
                 "--log-level=info", "app:app"]}


class Served(App):
    """The app under another server; `run` stays what cron runs, `python app.py statuses`."""

    def __init__(self, world, server, **env):
        super().__init__(world, **env)
        self.command = [word.format(port=self.env["PORT"]) for word in SERVERS[server]]

    def start(self, seconds=15):
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command], cwd=str(ROOT), env=self.env,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        until(lambda: self.answers() or not self.running, seconds, "the app does not answer")
        assert self.running, self.output()
        return self

    def workers(self):
        """gunicorn's worker processes that are alive."""
        booted = {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.output())}
        return [pid for pid in booted if alive(pid)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module", params=SERVERS)
def one_world(request):
    """The app installed under one of the servers; passes are cron's."""
    with World() as world:
        world.app = Served(world, request.param, RETRY_AFTER=0.5)
        world.apps.append(world.app)
        world.portal.app_url = world.app.start().url
        assert install(world).status_code == 200
        yield world


@pytest.fixture
def served(one_world):
    """The server running, nothing waiting, SMS.ru and the log as good as new."""
    if not one_world.app.running:
        one_world.app.start()
    one_world.smsru.delay = one_world.smsru.slow = 0
    one_world.smsru.trouble = None
    one_world.smsru.sent.clear()
    one_world.oauth.requests.clear()
    forget(one_world.app)
    return one_world


def cron(world):
    """What cron runs each minute."""
    return world.app.run("statuses")


def all_delivered(world, ids):
    return all(world.portal.messages[one]["history"][-1] == "delivered" for one in ids)


def burst(world, count, connections=32):
    """Messages with a text of their own each; {message_id: text} of those answered 200."""
    texts = [f"Text {number}" for number in range(count)]
    with ThreadPoolExecutor(connections) as pool:
        answers = list(pool.map(
            lambda text: world.portal.send_message(PHONE, text, code=code_of(world)), texts))
    return {one: text for (one, status), text in zip(answers, texts) if status == 200}


def test_the_story_comes_true(served):
    ids = [send(served, TEXT), send(served, TEXT, robot=True)]
    until(lambda: received(served, TEXT) == 2)
    assert cron(served)[0] == 0
    assert all_delivered(served, ids)
    assert not served.app.queue()
    key = handler_url(served).partition("key=")[2]
    assert key not in served.app.output(), "an access log holds the secret"


def test_a_burst_is_answered_at_once_and_sent_once(served):
    served.smsru.slow = 0.02
    began = time.monotonic()
    taken = burst(served, 300, 100)
    assert len(taken) == 300
    assert time.monotonic() - began < 10
    until(lambda: cron(served) and all_delivered(served, taken), 20)
    assert sorted(one["msg"] for one in served.smsru.sent) == sorted(taken.values())


def test_a_sigterm_in_the_middle_ends_the_server_and_loses_nothing(served):
    served.smsru.slow = 0.1
    taken = burst(served, 100)
    began = time.monotonic()
    served.app.process.send_signal(signal.SIGTERM)
    assert served.app.process.wait(20) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 10
    served.smsru.slow = 0
    until(lambda: cron(served) and all_delivered(served, taken), 20)
    doubts = [one for one in taken if doubted(served.app, one)]
    twice = [one for one, text in taken.items() if received(served, text) > 1]
    assert set(twice) <= set(doubts)
    assert len(taken) == 100


only_gunicorn = pytest.mark.parametrize("one_world", ["gunicorn"], indirect=True)


@only_gunicorn
def test_a_killed_worker_is_replaced_and_loses_nothing(served):
    served.smsru.slow = 0.2
    sending = threading.Thread(target=lambda: taken.update(burst(served, 150, 24)))
    taken = {}
    sending.start()
    until(lambda: len(served.smsru.sent) > 10)
    victim = served.app.workers()[0]
    os.kill(victim, signal.SIGKILL)
    sending.join()
    assert len(taken) > 100
    until(lambda: len(served.app.workers()) == 4 and victim not in served.app.workers())
    served.smsru.slow = 0
    until(lambda: cron(served) and all_delivered(served, taken), 20)
    twice = {one for one, text in taken.items() if received(served, text) > 1}
    assert twice <= {one for one in taken if doubted(served.app, one)}
    assert all(received(served, text) for text in taken.values())
    assert not served.app.queue()


@only_gunicorn
def test_four_workers_send_like_one_eight_messages_at_a_time(served):
    lock, under_way, peak = threading.Lock(), [], []

    def slowly(method, path, fields):
        if path == "/sms/send":
            with lock:
                under_way.append(path)
                peak.append(len(under_way))
            threading.Event().wait(0.05)
            with lock:
                under_way.pop()
    served.smsru.trouble = slowly
    taken = burst(served, 100)
    until(lambda: cron(served) and all_delivered(served, taken), 20)
    assert max(peak) == 8
    assert sorted(one["msg"] for one in served.smsru.sent) == sorted(taken.values())


@only_gunicorn
def test_four_workers_share_one_renewal_of_the_tokens(served):
    """Each /statuses may meet another worker: one of them renews, the others use its tokens."""
    url = handler_url(served).replace("/handler?", "/statuses?")
    for number in range(4):
        served.portal.expire_tokens()
        send(served, f"Text {number}")
        until(lambda text=f"Text {number}": received(served, text))
        with ThreadPoolExecutor(8) as pool:
            totals = [answer.json() for answer in pool.map(requests.get, [url] * 8)]
        until(lambda: requests.get(url, timeout=60).json()["waiting"] == 0)
        assert not [one for one in totals if one["errors"]]
    assert len(calls(served.oauth, "/oauth/token/")) == 4
