"""The tutorial's story, played without a browser: install, send, ask, tell."""
import re

import requests

from .browser import Browser
from .smsru import GOOD_KEY
from .wire import until

PHONE, TEXT = "+7 (925) 507-06-02", "Ваш код подтверждения: 1234"
ROBOT_PHONE, ROBOT_TEXT = "+79990000000", "Заказ № 57 готов, ждём вас до 20:00"


class Story:
    """The tutorial's story, step by step; a step that does not come true ends it."""

    def __init__(self, world):
        self.world, self.browser = world, Browser(world)
        self.seen, self.ids = 0, []

    def play(self):
        """Play every step; returns True, or False after saying which step did not come true."""
        steps = [self.open, self.save, self.add_sender, self.finish, self.card, self.robot,
                 self.operator, self.statuses, self.delivered, self.empty]
        for number, step in enumerate(steps, 1):
            print(f"\n{number}. {step.__doc__}")
            try:
                step()
                self.show()
            except (AssertionError, requests.RequestException) as error:
                self.show()
                print(f"\nThe story did not come true at step {number} ({step.__name__}): {error}")
                print("The last lines of the app:")
                lines = self.world.app.output().splitlines()[-15:]
                print("\n".join(self.world.wire.mask(line) for line in lines))
                return False
        print("\nThe story came true.")
        return True

    def show(self):
        """Print what went over the wire since the last time, in the order in which it began."""
        news = self.world.wire.since(self.seen)
        self.seen += len(news)
        for exchange in sorted(news, key=lambda one: one["time"]):
            print("   " + self.world.wire.text(exchange))

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
        for one in self.world.smsru.sent:
            print(f"   SMS.ru accepted {one['sms_id']} to {one['to']}: {one['msg']}")

    def statuses(self):
        """Cron's turn: python app.py statuses asks SMS.ru and tells the portal."""
        code, output = self.world.app.run("statuses")
        print("   " + output.strip().replace("\n", "\n   "))
        assert code == 0, f"it ended with exit code {code}"

    def delivered(self):
        """The portal shows both messages as delivered (a pass runs every second)."""
        def history():
            return [self.world.portal.messages[one]["history"] for one in self.ids]
        until(lambda: all(one[-1] == "delivered" for one in history()), 20, "no such status")
        for one, message_id in zip(history(), self.ids):
            print(f"   {message_id}: {' → '.join(one)}")

    def empty(self):
        """The queue is empty: nothing is left to do, and no text is left behind."""
        until(lambda: not self.world.app.queue(), 10, "files are left in the queue")
