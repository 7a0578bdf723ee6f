"""Stands in for a browser with BX24.js: opens the frame, reads its form, saves, registers."""
from html.parser import HTMLParser
from urllib.parse import urljoin

import requests

from .bitrix24 import ADMINISTRATOR
from .smsru import GOOD_KEY
from .wire import flat


class Form(HTMLParser):
    """Reads the form of a page by its id: where it goes, and every named field as it is."""

    def __init__(self, page, form_id="sms-settings"):
        super().__init__()
        self.form_id, self.inside, self.found, self.action = form_id, False, False, None
        self.fields = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form" and attrs.get("id") == self.form_id:
            self.inside = self.found = True
            self.action = attrs.get("action")
        if self.inside and tag in ("input", "textarea", "select") and attrs.get("name"):
            self.fields[attrs["name"]] = attrs.get("value") or ""

    def handle_endtag(self, tag):
        if tag == "form":
            self.inside = False


class Browser:
    """Stands in for the browser and BX24.js: opens the frame, saves, registers, finishes."""

    def __init__(self, world, user=ADMINISTRATOR, portal=None):
        self.world, self.user, self.portal = world, user, portal or world.portal
        self.url = self.form = None

    def open(self, page="install", lang="ru"):
        """Open a page of the app in the portal's frame; remembers its form."""
        self.url, self.frame = self.portal.open_frame(self.user, page, lang)
        answer = self.post(self.url, self.frame)
        self.form = Form(answer.text)
        return answer

    def post(self, url, fields):
        return self.world.wire.post("browser", "app", url, fields,
                                    {"Origin": url.split("/", 3)[0] + "//" + url.split("/")[2]})

    def save(self, **fields):
        """Send the form with the operator's fields filled in, as the page's script does."""
        assert self.form and self.form.found, "the page has no form with id sms-settings"
        url = urljoin(self.url, self.form.action or "save")
        return self.post(url, {**self.form.fields, **fields})

    def call(self, method, params=None):
        """BX24.callMethod: a PHP-encoded form with `auth` first, from the browser, with CORS.

        The portal writes it on the wire; here it only gets sent, marked as the browser's.
        """
        session = requests.Session()
        session.trust_env = False
        fields = {"auth": self.frame["AUTH_ID"], **flat(params or {})}
        return session.post(f"{self.portal.url}/rest/{method}.json", data=fields, timeout=30,
                            headers={"Origin": self.world.portal.app_url.rstrip("/"),
                                     "X-Stand-In": "browser"}).json()

    def register(self, sender):
        """Add the sender; one that is there already has been updated by /save."""
        answer = self.call("messageservice.sender.add", sender)
        fine = answer.get("result") is True or (
            answer.get("error") == "ERROR_SENDER_ALREADY_INSTALLED")
        assert fine, f"the sender was not registered: {answer}"
        return answer

    def finish(self):
        """BX24.installFinish: a message to the portal's page, after which events begin."""
        self.portal.installed = True
        self.world.wire.add("browser", "portal", "postMessage", "setInstallFinish",
                            status=None, answer=True, script="install")

    def install(self, **fields):
        """Open, save, register, finish; stops after /save when that was refused."""
        self.open("install")
        answer = self.save(**fields)
        if answer.status_code == 200:
            self.register(answer.json()["sender"])
            self.finish()
        return answer


def install(world, api_key=GOOD_KEY, user=ADMINISTRATOR):
    """Install the app as a person would; returns the answer of /save."""
    return Browser(world, user).install(api_key=api_key)
