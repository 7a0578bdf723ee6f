"""The tutorial's story, played without a browser: install, send, ask, tell.

Printed as it happens: a request when it begins; its answer, and why it was made, when that comes.
"""
import json
import re
import textwrap

import requests

from .browser import Browser
from .lesson import Lesson
from .smsru import GOOD_KEY
from .wire import brief, until

PHONE, TEXT = "+7 (925) 507-06-02", "Ваш код подтверждения: 1234"
ROBOT_PHONE, ROBOT_TEXT = "+79990000000", "Заказ № 57 готов, ждём вас до 20:00"
WIDTH = 100
COLOURS = {"good": 32, "expected": 36, "bad": 31, "head": 1}  # the terminal's numbers: green, ...


class Paper:
    """Prints in lines of at most 100 characters; in colour where there is a terminal."""

    def __init__(self, world, colour=False):
        self.wire, self.lesson, self.colour = world.wire, Lesson(world.portal), colour
        self.seen, self.open = 0, 0  # changes printed; the request whose lines were printed last

    def say(self, text, indent=0, colour="", most=None):
        """Print a text, wrapped; no more than `most` lines of it."""
        lines = textwrap.wrap(text, WIDTH - indent, max_lines=most, placeholder=" …",
                              break_on_hyphens=False)
        for line in lines:
            painted = self.colour and colour in COLOURS
            line = f"\x1b[{COLOURS[colour]}m{line}\x1b[0m" if painted else line
            print(" " * indent + line)

    def line(self, text):
        """Print one line; what is too long for it is cut."""
        text = text.replace("\n", "\\n")
        print(text if len(text) <= WIDTH else text[:WIDTH - 1] + "…")

    def show(self):
        """Print what went over the wire since the last time, in the order in which it happened."""
        changes = self.wire.changed(self.seen)
        self.seen += len(changes)
        self.lesson.read(self.wire)
        for change in changes:
            (self.request if change["pending"] else self.answer)(change)

    def request(self, one):
        way = f"#{one['n']}  {one['who']} → {one['to']}  [{one['script']}.php]"
        self.line(f"   {way}  {one['method']} {one['path']}")
        for name, value in one["fields"].items():
            self.line(f"      {name} = {value}")
        self.open = one["n"]

    def answer(self, change):
        """The answer names its request, if others have begun meanwhile; then why it was made."""
        one = self.lesson.view(change)
        answer = brief(one["answer"])
        if not isinstance(answer, str):
            answer = json.dumps(answer, ensure_ascii=False)
        number = "" if self.open == one["n"] else f"to #{one['n']}: "
        status = {None: "", 0: "no answer "}.get(one["status"], f"{one['status']} ")
        self.say(f"← {number}{status}{answer}", 6, one["outcome"], most=3)
        self.say(one["why"]["en"], 6, one["outcome"])
        self.open = 0


class Story:
    """The tutorial's story, step by step; a step that does not come true ends it."""

    def __init__(self, world, colour=False):
        self.world, self.browser, self.paper = world, Browser(world), Paper(world, colour)
        self.ids, self.results = [], []

    def play(self):
        """Play every step; returns True, or False after saying which step did not come true."""
        steps = [self.open, self.save, self.add_sender, self.finish, self.card, self.robot,
                 self.operator, self.statuses, self.delivered, self.empty]
        for number, step in enumerate(steps, 1):
            print()
            self.paper.say(f"{number}. {step.__doc__}", colour="head")
            try:
                step()
                self.show()
            except (AssertionError, requests.RequestException) as error:
                self.paper.show()
                self.failed(f"step {number} ({step.__name__}): {error}")
                return False
        print()
        self.paper.say("The story came true.", colour="good")
        return True

    def show(self):
        """Print what was said, until everybody has his answer, and after it what came of it."""
        def quiet():
            self.paper.show()
            return not any(one["pending"] for one in self.world.wire.exchanges)
        until(quiet, 60, "somebody waits for an answer")
        for line in self.results:
            self.paper.say(line, 3)
        self.results.clear()

    def failed(self, where):
        print()
        self.paper.say("The story did not come true at " + where, colour="bad")
        print("The last lines of the app:")
        for line in self.world.app.output().splitlines()[-15:]:
            self.paper.say(self.world.wire.mask(line), 3)

    def open(self):
        """The portal opens install in a frame; the page asks for the operator's key."""
        answer = self.browser.open("install")
        assert answer.status_code == 200, f"the page answered {answer.status_code}"
        assert self.browser.form.found, "the page has no form with id sms-settings"

    def save(self):
        """The administrator types the key and presses Save; the app checks it and keeps it."""
        self.answer = self.browser.save(api_key=GOOD_KEY)
        assert self.answer.status_code == 200, f"/save: {self.answer.text[:300]}"

    def add_sender(self):
        """The page registers the provider: messageservice.sender.add."""
        sender = self.answer.json()["sender"]
        self.browser.register(sender)
        assert list(self.world.portal.senders) == [sender["CODE"]], "another sender was expected"

    def finish(self):
        """BX24.installFinish ends the installation; the portal opens the main page, index."""
        self.browser.finish()
        assert self.browser.open("index").status_code == 200, "index does not open"

    def card(self):
        """Somebody writes an SMS in a CRM card; the portal calls the handler."""
        self.message(PHONE, TEXT)

    def robot(self):
        """A robot writes another one; nobody's name is under it, so there is no auth."""
        self.message(ROBOT_PHONE, ROBOT_TEXT, robot=True)

    def message(self, to, text, **kind):
        code = next(iter(self.world.portal.senders))
        message_id, status = self.world.portal.send_message(to, text, code=code, **kind)
        self.ids.append(message_id)
        assert status == 200, f"the handler answered {status}"

    def operator(self):
        """The pretend SMS.ru receives both texts."""
        wanted = sorted([(re.sub(r"\D", "", PHONE), TEXT), (ROBOT_PHONE[1:], ROBOT_TEXT)])
        until(lambda: len(self.world.smsru.sent) >= 2, 10, "SMS.ru did not get two messages")
        got = sorted((one["to"], one["msg"]) for one in self.world.smsru.sent)
        assert got == wanted, f"SMS.ru got {got}"
        self.results += [f"SMS.ru accepted {one['sms_id']} to {one['to']}: {one['msg']}"
                         for one in self.world.smsru.sent]

    def statuses(self):
        """Cron's turn: python app.py statuses asks SMS.ru and tells the portal."""
        code, output = self.world.app.run("statuses")
        self.results += output.splitlines()
        assert code == 0, f"it ended with exit code {code}"

    def delivered(self):
        """The portal shows both messages as delivered (a pass runs every second)."""
        def history():
            return [self.world.portal.messages[one]["history"] for one in self.ids]
        until(lambda: all(one[-1] == "delivered" for one in history()), 20, "no such status")
        for one, message_id in zip(history(), self.ids):
            self.results.append(f"{message_id}: {' → '.join(one)}")

    def empty(self):
        """The queue is empty: nothing is left to do, and no text is left behind."""
        until(lambda: not self.world.app.queue(), 10, "files are left in the queue")
