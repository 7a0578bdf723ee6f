"""The tutorial's story, as a reader starts it, and the same with the demo operator."""
import os
import signal
import socket
import subprocess
import sys

import pytest
import requests
from pretend import GOOD_KEY, ROOT, TEXT, Browser, until
from steps import code_of

PATH = [sys.executable, str(ROOT / "tests" / "portal.py")]


def play(*arguments):
    done = subprocess.run([*PATH, *arguments], capture_output=True, timeout=20, check=False,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=ROOT)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8")


@pytest.fixture(scope="module")
def told():
    return play("--once")


def test_once_plays_the_whole_story_and_exits_0(told):
    code, output = told
    assert code == 0, output
    assert "The story came true." in output
    for step in range(1, 11):
        assert f"\n{step}. " in output
    steps = ["POST /install", "POST /save", "messageservice.sender.add", "setInstallFinish",
             "POST /handler", "/sms/send", "messageservice.message.status.update"]
    places = [output.find(step) for step in steps]
    assert -1 not in places, steps[places.index(-1)]
    assert places == sorted(places)
    assert TEXT in output
    assert "sent → delivered" in output


def test_what_the_story_prints_is_masked(told):
    output = told[1]
    assert GOOD_KEY not in output
    assert "api_id = …" + GOOD_KEY[-4:] in output
    assert "/handler?key=…" in output


def test_a_story_that_cannot_be_told_exits_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, output = play("--once", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "came true" not in output


def test_another_operator_is_tried_in_the_box_not_in_the_story():
    code, output = play("--operator", "nobody")
    assert (code, "SMS_OPERATOR is one of demo, smsru" in output) == (1, True)
    code, output = play("--once", "--operator", "demo")
    assert (code, "leave out --once" in output) == (2, True)


def test_a_forks_own_variables_are_handed_on_and_a_wrong_one_is_told():
    code, output = play("--env", "SMS_OPERATOR=nobody")
    assert (code, "SMS_OPERATOR is one of" in output) == (1, True)
    code, output = play("--env", "nonsense")
    assert (code, "is not NAME=VALUE" in output) == (2, True)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_launcher_ends_the_app_and_its_data_go(ending):
    run = subprocess.Popen(PATH, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines = [run.stdout.readline(), run.stdout.readline()]
    address, data = lines[0].split()[1], lines[1].partition("its data in ")[2].split(" go.")[0]
    assert requests.get(address, timeout=10).ok and os.path.isdir(data)
    run.send_signal(ending)
    assert run.wait(20) == 0
    assert not os.path.exists(data)
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=10)


def test_the_same_story_with_demo(world):
    app = world.start_app(SMS_OPERATOR="demo", STATUSES_EVERY=0.2, RETRY_AFTER=1)
    assert Browser(world).install(api_key="any").status_code == 200
    assert "demo" in world.portal.senders[code_of(world)]["NAME"]
    answers = [world.portal.send_message("+79990000000", TEXT, robot=robot)
               for robot in (False, True)]
    assert [status for _, status in answers] == [200, 200]
    until(lambda: [world.portal.messages[one]["history"] for one, _ in answers]
          == [["sent", "delivered"]] * 2)
    until(lambda: not app.queue())
    assert not world.smsru.requests
    assert app.stop() == 0
