"""The tutorial's story, as a reader starts it, and the same with the demo operator."""
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios

import pytest
import requests
from pretend import GOOD_KEY, ROOT, TEXT, Browser, until
from pretend.lesson import WHY
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


def test_what_the_story_prints_is_in_the_order_in_which_it_happened(told):
    """An answer stands right under its request, or names one that stands above it."""
    asked, waiting = [], set()
    for line in told[1].splitlines():
        request, answer = re.match(r" {3}#(\d+) ", line), re.match(r" {6}← (?:to #(\d+))?", line)
        if request:
            asked.append(int(request[1]))
            waiting.add(asked[-1])
        if answer:
            waiting.remove(int(answer[1] or asked[-1]))
        if re.match(r" {3}(SMS.ru accepted|\{|\w{32}: )", line):
            assert not waiting, f"{line} stands before the answers to {waiting}"
    assert asked == list(range(1, len(asked) + 1)) and len(asked) >= 15
    assert not waiting


def test_no_line_is_longer_than_a_terminal_is_wide(told):
    assert [line for line in told[1].splitlines() if len(line) > 100] == []


def test_below_each_answer_stands_why_its_request_was_made(told):
    lines = [re.sub(r"^ {6}", "", line) for line in told[1].splitlines()]
    text = " ".join(lines)
    sentences = {entry["en"][1] for endings in WHY.values() for entry in endings.values()}
    found = sum(text.count(sentence) for sentence in sentences)
    assert found == sum(line.startswith("← ") for line in lines) >= 15


def test_the_last_line_says_what_to_try_next(told):
    assert told[1].splitlines()[-1].endswith("tests/portal.py --open")


def in_a_terminal(*arguments, **env):
    """Play it where the output is a terminal; what came there."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen([*PATH, *arguments], stdout=theirs, stderr=theirs, cwd=ROOT,
                           env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env})
    os.close(theirs)
    output = b""
    try:
        while found := os.read(ours, 65536):
            output += found
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert run.wait(20) == 0
    return output.decode("utf-8")


def test_colours_are_for_a_terminal_and_for_those_who_want_them(told):
    assert "\x1b[" not in told[1]
    assert "\x1b[" not in in_a_terminal("--once", NO_COLOR="1")
    seen = in_a_terminal("--once", NO_COLOR="")
    expected, = [line for line in seen.splitlines() if "ERROR_SENDER_NOT_FOUND" in line]
    assert "\x1b[36m← 400" in expected, "an expected error is not red"
    assert "\x1b[32m← 200" in seen
    assert [line for line in seen.splitlines()
            if len(re.sub(r"\x1b\[\d+m", "", line)) > 100] == []


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


def open_box(**how):
    """Start the launcher; the process, its two lines, the portal's address, the app's data."""
    run = subprocess.Popen(PATH, stdout=subprocess.PIPE, text=True, cwd=ROOT, **how)
    lines = [run.stdout.readline(), run.stdout.readline()]
    address, data = lines[0].split()[1], lines[1].partition("its data in ")[2].split(" go.")[0]
    assert requests.get(address, timeout=10).ok and os.path.isdir(data)
    return run, lines, address, data


def gone(address, data):
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=10)
    return not os.path.exists(data)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_launcher_ends_the_app_and_its_data_go(ending):
    run, lines, address, data = open_box()
    assert "a pretend Bitrix24, the app in it" in lines[0] and "--open" in lines[0]
    assert max(map(len, lines)) <= 101
    run.send_signal(ending)
    assert run.wait(20) == 0
    assert gone(address, data)


def test_closing_the_terminal_ends_the_app_as_well():
    """The launcher leads a session of its own, in a terminal that goes away."""
    ours, theirs = pty.openpty()
    run, _, address, data = open_box(
        stdin=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    os.killpg(run.pid, 0)  # nothing is sent: are there any processes?
    os.close(ours)
    assert run.wait(20) == 0
    assert gone(address, data)
    with pytest.raises(ProcessLookupError):  # neither the launcher nor the app
        os.killpg(run.pid, 0)


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
