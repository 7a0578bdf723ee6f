"""Does anything get lost or doubled? python tests/measure/soak.py [--seconds 180] [--seed N]

Two processes of the app share one DATA_DIR. Messages come from several connections while, at
random, the app is killed and started again, the operator is down, slow, refuses, talks nonsense or
breaks the line, the portal and the OAuth server are busy, moved, broken, and tokens expire. Then
everything heals, and each message is accounted for. Prints the totals and a verdict; ends with 0
when it is good, else 1.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pretend import Browser, World, install, until
from steps import code_of, handler_url, logged, make_due, rests

WRITERS, PAUSE = 6, 0.08  # connections; seconds between two messages of one of them
IN_PARALLEL = 8  # messages that the one sender hands over at the same time
THREADS = IN_PARALLEL + 4  # of a process: main, its passes, its sender, a request
RETRY_AFTER = 1
REPEAT_WITHIN = 0.6  # seconds; nothing that may have been sent leaves the queue earlier
LINE_BROKE = ("ConnectionError", "ChunkedEncodingError", "ReadTimeout")  # what requests raises
REFUSED, UNDELIVERED = "79000000207", "79000000104"  # the pretend SMS.ru's own trouble
DECK = ["kill"] * 6 + ["passes"] * 2 + ["operator " + kind for kind in (
    "down", "slow", "refusing", "nonsense", "cutting", "unreachable")] + [
    "portal " + kind for kind in ("503", "429", "302", "html", "expired", "oauth down")]
HTML = "<html><title>502 Bad Gateway</title></html>"
NONSENSE = (HTML, "[]", "null", '{"status": []}', "{" * 5000, "")


class Ledger:
    """Every message: who it was for, and whether any of our requests was answered with 200.

    `messages` are {id: {"to", "text", "began", "accepted"}}.
    """

    def __init__(self):
        self.messages, self.lock = {}, threading.Lock()
        self.requests, self.repeats, self.answers = 0, 0, Counter()

    def new(self, rng, prefix):
        with self.lock:
            message_id = f"{prefix}{len(self.messages):06}"
            to = rng.choice([REFUSED, UNDELIVERED, "nobody"]) if rng.random() < 0.06 else \
                f"+7 (9{rng.randrange(10 ** 2):02}) {rng.randrange(10 ** 7):07}"
            self.messages[message_id] = {"to": to, "text": "text of " + message_id,
                                         "began": time.monotonic(), "accepted": False}
            return message_id

    def note(self, message_id, status):
        with self.lock:
            self.requests += 1
            self.answers[status] += 1
            self.messages[message_id]["accepted"] |= status == 200

    def accepted(self):
        return [name for name, one in self.messages.items() if one["accepted"]]


class Soak:
    """The world, two processes of the app, and the trouble between them."""

    def __init__(self, seed):
        self.rng, self.seed = random.Random(seed), seed
        self.world, self.ledger, self.over = World(), Ledger(), threading.Event()
        self.kills = self.cuts = self.saves = self.renames = 0
        self.trouble = Counter()

    def start(self):
        world = self.world.start()
        first = world.start_app(STATUSES_EVERY=0.7, RETRY_AFTER=RETRY_AFTER)
        assert install(world).status_code == 200
        second = world.new_app(STATUSES_EVERY=0.9, RETRY_AFTER=RETRY_AFTER, DATA_DIR=first.data)
        self.apps, self.data = [first, second.start()], first.data
        self.code = code_of(world)
        world.smsru.balance, world.smsru.delay, world.smsru.slow = 1e9, 2.0, 0.05
        world.smsru.codes[REFUSED], world.smsru.delivery[UNDELIVERED] = 207, 104
        for party in (world.portal, world.oauth, world.smsru):
            party.keep, party.noted = False, lambda method, path: False

    # Messages ------------------------------------------------------------------------------------

    def write(self, number):
        """One connection's messages; now and then one comes twice, or at both processes at once."""
        rng, session = random.Random(f"{self.seed} {number}"), new_session()
        while not self.over.wait(rng.uniform(0, 2 * PAUSE)):
            message_id, app = self.ledger.new(rng, f"w{number}-"), rng.choice(self.apps)
            self.post(session, message_id, app)
            began = self.ledger.messages[message_id]["began"]
            while rng.random() < 0.15:
                self.over.wait(rng.choice([0, rng.uniform(0, REPEAT_WITHIN)]))  # in any folder
                if time.monotonic() - began > REPEAT_WITHIN:
                    break
                self.ledger.repeats += 1
                self.post(session, message_id, rng.choice(self.apps))

    def post(self, session, message_id, app):
        one, portal = self.ledger.messages[message_id], self.world.portal
        with portal.lock:
            portal.messages.setdefault(message_id, {
                "to": one["to"], "body": one["text"], "code": self.code, "status": "sent",
                "history": ["sent"], "author": 1})
        fields = portal.message_fields(one["to"], one["text"], message_id, self.code,
                                       robot=message_id[-1] in "02468")
        try:
            status = session.post(handler_url(self.world, app), fields, timeout=20).status_code
        except requests.RequestException:
            status = 0
        self.ledger.note(message_id, status)

    # Trouble -------------------------------------------------------------------------------------

    def kill(self):
        """SIGKILL one process and start it again, some time later."""
        app = self.rng.choice(self.apps)
        app.kill()
        self.kills += 1
        self.over.wait(self.rng.uniform(0, 0.5))
        app.start(30)

    def passes(self):
        """Passes over HTTP and from the command line, beside those that run anyway."""
        command = [sys.executable, str(self.apps[0].script), "statuses"]
        run = subprocess.Popen(command, env=self.apps[0].env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        if self.rng.random() < 0.3:
            self.over.wait(self.rng.uniform(0.2, 0.5))
            run.kill()
            self.kills += 1
        self.one_pass()
        run.wait()

    def one_pass(self):
        url = handler_url(self.world, self.rng.choice(self.apps))
        with suppress(requests.RequestException):
            return new_session().get(url.replace("/handler?", "/statuses?"), timeout=60).json()
        return {}

    def operator(self, kind):
        """The operator is down, slow, refuses all, talks nonsense, or breaks the line."""
        smsru = self.world.smsru
        if kind == "down":
            smsru.down = True
        elif kind == "slow":
            smsru.slow = 1.5
        elif kind == "refusing":
            smsru.refuse = self.rng.choice([200, 201, 206, 220, 230, 300, 500])
        elif kind == "unreachable":
            self.cuts += IN_PARALLEL  # as many at most wait for their answer
            smsru.stop()
        else:
            smsru.trouble = self.cut if kind == "cutting" else self.nonsense
        self.over.wait(self.rng.uniform(0.3, 1.5))
        self.heal_operator()

    def heal_operator(self):
        smsru = self.world.smsru
        smsru.trouble, smsru.down, smsru.slow, smsru.refuse = None, False, 0.05, None
        if smsru.server is None:
            smsru.start()

    def cut(self, method, path, fields):
        """The operator accepts, and the line breaks before its answer, now and then."""
        if path == "/sms/send" and self.rng.random() < 0.1:
            with self.world.smsru.lock:
                self.cuts += 1
                self.world.smsru.send(path, fields)
            raise ConnectionResetError

    def nonsense(self, method, path, fields):
        """A proxy answers in the operator's place; now and then the message came through."""
        if path == "/sms/send":
            with self.world.smsru.lock:
                self.cuts += 1
                if self.rng.random() < 0.1:
                    self.world.smsru.send(path, fields)
        return 200, self.rng.choice(NONSENSE), {}

    def portal(self, kind):
        """The portal is busy, blocks us, moves, breaks, or lets the tokens expire."""
        portal = self.world.portal
        answers = {"503": (503, {"error": "QUERY_LIMIT_EXCEEDED"}, {}), "html": (200, HTML, {}),
                   "429": (429, {"error": "OPERATION_TIME_LIMIT"}, {})}
        if kind in answers:
            portal.trouble = lambda method, path, fields: answers[kind]
        elif kind == "302" and self.renames < 3:
            self.renames += 1
            portal.rename()
        elif kind == "oauth down":
            self.world.oauth.trouble = lambda method, path, fields: (502, HTML, {})
        portal.expire_tokens() if kind in ("expired", "oauth down") else None
        self.over.wait(self.rng.uniform(0.3, 1.5))
        portal.trouble = self.world.oauth.trouble = None

    def rage(self, seconds):
        """Trouble of every kind in turn, as a shuffled deck of cards, until the time is over."""
        writers = [threading.Thread(target=self.write, args=(number,)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        deadline, deck = time.monotonic() + seconds, []
        try:
            while time.monotonic() < deadline:
                deck = deck or self.rng.sample(DECK, len(DECK))
                name, *kind = deck.pop().split(" ", 1)
                self.trouble[" ".join([name, *kind])] += 1
                getattr(self, name)(*kind)
                self.over.wait(self.rng.uniform(0, 0.2))
                self.shorten_rest()
        finally:
            self.over.set()
            for writer in writers:
                writer.join()

    def shorten_rest(self):
        """As if the hour were over that sending rests once the operator's limit of a day is."""
        with suppress(FileNotFoundError):
            if rests(self.apps[0]) > 2 * RETRY_AFTER:
                make_due(self.apps[0])

    # Healing -------------------------------------------------------------------------------------

    def heal(self):
        """All is well again; a token that a kill burned needs an administrator who presses Save."""
        self.over.clear()
        for app in self.apps:
            app.stop()
        for path in self.data.glob("*.tmp"):  # left by a kill, now that nobody writes
            os.utime(path, (1000, 1000))  # a pass sweeps what is older than an hour
        for app in self.apps:
            app.start()
        self.heal_operator()
        self.world.smsru.delay = self.world.smsru.slow = 0
        until(self.drained, 90, "the queue does not become empty")
        self.one_pass()

    def drained(self):
        """Make the pauses be over, and pass."""
        make_due(self.apps[0])
        totals = self.one_pass()
        if "administrator" in totals.get("errors", {}).get("portal", ""):
            browser, self.saves = Browser(self.world), self.saves + 1
            browser.open("index")
            browser.save()
        return not self.apps[0].queue()

    def grow(self, messages):
        """More messages in peace; returns what each process then holds, see measure()."""
        def write(number):
            session = new_session()
            for _ in range(messages // WRITERS):
                self.post(session, self.ledger.new(self.rng, f"g{number}-"), self.apps[number % 2])
        writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        until(self.drained, 60, "the queue does not become empty")
        return [measure(app.process.pid) for app in self.apps]


def new_session():
    session = requests.Session()
    session.trust_env = False
    return session


def measure(pid):
    """Threads, descriptors, KiB of memory of a process; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return (int(lines["Threads"]), len(os.listdir(f"/proc/{pid}/fd")),
                int(lines["VmRSS"].split()[0]))
    except FileNotFoundError:
        return None


# The verdict -------------------------------------------------------------------------------------

def doubts(app):
    """The ids that the log calls in doubt."""
    return {line["message_id"] for line in logged(app, "send") if line["outcome"] == "in doubt"}


def right(one, times, status):
    """Sent and reported; what can't be sent is reported as failed."""
    if one["to"] in (REFUSED, "nobody"):
        return (times, status) == (0, "failed")
    return (times, status) == (1, "undelivered" if one["to"] == UNDELIVERED else "delivered")


def account(soak):
    """Look at every message: [what, how many, at most]."""
    app, ledger, portal = soak.apps[0], soak.ledger, soak.world.portal
    doubted = doubts(app)
    times = Counter(one["msg"] for one in soak.world.smsru.sent)
    missing, doubled = [], []
    for message_id, one in ledger.messages.items():
        count, status = times[one["text"]], portal.messages[message_id]["status"]
        if count > 1 + (message_id in doubted):
            doubled.append(message_id)
        final = status in ("delivered", "undelivered", "failed")
        if one["accepted"] and not (final and message_id in doubted or right(one, count, status)):
            missing.append((message_id, count, status))
    for trouble in missing + doubled:
        print("  ", trouble)
    mistakes = [line for line in logged(app, "mistake") if line["error"] not in LINE_BROKE]
    left = [path for path in (soak.data / "queue").rglob("*") if path.is_file()]
    writing = set(soak.data.glob("*.tmp"))  # by a pass at this moment, or by a process that died
    with suppress(AssertionError):
        until(lambda: not any(path.exists() for path in writing), 5)
    left += [path for path in writing if path.exists()]
    for trouble in mistakes + left:
        print("  ", trouble)
    sent_twice = sum(times[one["text"]] > 1 for one in ledger.messages.values())
    return [("lost", len(missing), 0), ("doubled, and not in doubt", len(doubled), 0),
            ("sent twice", sent_twice, len(doubted)),
            ("in doubt", len(doubted), soak.kills * IN_PARALLEL + soak.cuts),
            ("mistakes in the log that are no broken line", len(mistakes), 0),
            ("files left in the queue, or *.tmp", len(left), 0),
            ("answers 5xx", sum(count for status, count in ledger.answers.items()
                                if status >= 500), 0)]


def growth(before, after):
    """What both processes hold, and how much it grew while as many messages came again."""
    if None in before:
        return []
    rows = []
    for number, (old, new) in enumerate(zip(before, after), 1):
        rows += [(f"process {number}: threads", new[0], THREADS),
                 (f"process {number}: descriptors more", new[1] - old[1], IN_PARALLEL),
                 (f"process {number}: KiB of memory more", new[2] - old[2], 4096)]
    return rows


def play(seconds, seed):
    """Rage, heal, account; returns whether all is well."""
    soak = Soak(seed)
    try:
        soak.start()
        soak.rage(seconds)
        soak.heal()
        messages = min(600, 60 + int(seconds * 6))
        soak.grow(messages)
        rows = growth(soak.grow(messages), soak.grow(messages))
        for app in soak.apps:  # so that nothing is just being written
            app.stop()
        rows = account(soak) + rows
    finally:
        soak.over.set()
        soak.world.stop()
    ledger = soak.ledger
    print(f"seed {seed}: {len(ledger.messages)} messages in {ledger.requests} requests, "
          f"{len(ledger.accepted())} accepted, {len(soak.world.smsru.sent)} sent; {ledger.repeats} "
          f"repeats, {soak.kills} kills, at most {soak.cuts} answers lost, "
          f"{soak.saves} times Save pressed\n"
          + ", ".join(f"{name} {count}" for name, count in sorted(soak.trouble.items())))
    for what, count, most in rows:
        print(f"  {'ok   ' if count <= most else 'WRONG'} {what}: {count} (at most {most})")
    return all(count <= most for _, count, most in rows)


def goodbye(signum, frame):
    raise KeyboardInterrupt


def main():
    options = argparse.ArgumentParser(description="Is anything lost or doubled?")
    options.add_argument("--seconds", type=float, default=180, help="of trouble, then it heals")
    options.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    chosen = options.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, goodbye)
    try:
        good = play(chosen.seconds, chosen.seed)
    except AssertionError as error:
        print(f"seed {chosen.seed}: {error}")
        good = False
    print("Nothing was lost or doubled." if good else "NOT GOOD.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
