"""A tab of a real browser with the box's page: what a reader of the tutorial sees and clicks."""
import json
import re
from pathlib import Path

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDE, FLAT, PHONE = (1280, 800), (1440, 600), (390, 844)
TEXTS = json.loads((Path(__file__).parent / "page" / "texts.json").read_text("utf-8"))
LAYOUTS = [(lang, size) for lang in ("ru", "en") for size in (WIDE, FLAT, PHONE)]

APP_PAGE = """
const form = document.getElementById('sms-settings');
const button = form && form.querySelector('button');
const input = form && form.querySelector('.operator');
const text = (id) => (document.getElementById(id) || {}).textContent || '';
return {
  page: form ? form.dataset.page : document.querySelector('[role=alert]') ? 'refused' : 'other',
  lang: document.documentElement.lang, button: button ? button.textContent : '',
  ready: !button || !button.disabled, done: text('done'), trouble: text('trouble').trim(),
  key: input ? input.placeholder : '', type: input ? input.type : '',
  focused: document.activeElement.id,
  warnings: [...document.querySelectorAll('.warning')].map((one) => one.textContent.trim()),
  text: document.body.innerText};"""

IN_SIGHT = """
const [one] = arguments;
const { left, top, right, bottom } = one.getBoundingClientRect();
const inside = left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
const points = [[left + 2, top + 2], [right - 2, bottom - 2]];
return inside && points.every(([x, y]) => one.contains(document.elementFromPoint(x, y)));"""

FRAME = """
const frame = document.getElementById('app-frame');
let top = frame.getBoundingClientRect().top;
for (let one = frame.parentElement; one; one = one.parentElement) top += one.scrollTop;
return top;"""
BOTTOM = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"

MESSAGES = """
return [...document.querySelectorAll('#messages [data-id]')].map((row) => ({
  id: row.dataset.id, text: row.textContent,
  status: (row.matches('[data-status]') ? row : row.querySelector('[data-status]'))
    .dataset.status}));"""

WIRE = """
return [...document.querySelectorAll('#wire .exchange')].map((row) => ({
  script: row.dataset.script, who: row.dataset.who, to: row.dataset.to, outcome: row.dataset.outcome,
  text: row.textContent, n: Number(row.dataset.n),
  shown: row.querySelector('.line').checkVisibility()}));"""


class Tab:
    """The page on the portal's own address, and the application's page in the frame within it."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, lang="ru", size=WIDE):
        """Open the page and its application; `page` waits for what the application shows."""
        self.resize(size)
        self.driver.get(self.address)
        self.wait_for_box()
        self.lay_out(lang, size)
        self.open_app()
        return self

    def wait_for_box(self):
        """Wait until the box's page has its texts, and its buttons listen."""
        self.wait(lambda: self.find("#lang-ru").get_attribute("aria-pressed"))

    def resize(self, size):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False})

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def click(self, css):
        """Press it where it may be seen: not below the window's edge or the bar on top."""
        self.wait(lambda: self.find(css).is_enabled())
        self.run("arguments[0].scrollIntoView({ block: 'center' })", self.find(css))
        self.find(css).click()

    def lay_out(self, lang, size):
        """Change the language and the size of a page that is open."""
        self.lang, self.size = lang, size
        self.resize(size)
        self.click("#lang-" + lang)

    def say(self, text, **values):
        """The page's text with this name, in the language that was chosen last."""
        return TEXTS[self.lang][text].format(**values)

    def in_sight(self, css):
        """Is all of it inside the window, and nothing on top of it?"""
        return self.run(IN_SIGHT, self.find(css) if isinstance(css, str) else css)

    def show(self, view):
        """Choose the contact's card or the application in the portal's menu."""
        if self.find("#view-" + view).get_attribute("aria-current") != "page":
            self.click("#view-" + view)

    def type(self, css, text):
        """Put the text into an empty or filled-in field, key by key."""
        self.find(css).clear()
        self.find(css).send_keys(text)

    def text(self, css):
        return self.find(css).text.strip()

    def run(self, script, *values):
        return self.driver.execute_script(script, *values)

    def wait(self, look, seconds=10, message=""):
        """Wait until look() finds something; a page that is just being replaced is "not yet"."""
        waiting = WebDriverWait(self.driver, seconds, 0.15, [WebDriverException])
        return waiting.until(lambda _: look(), message)

    def in_frame(self, look):
        """Look around inside the application's frame, and come back."""
        self.driver.switch_to.frame(self.find("#app-frame"))
        try:
            return look()
        finally:
            self.driver.switch_to.default_content()

    # The application's page

    def open_app(self):
        """Have the portal open the application in a new frame."""
        before = [frame.get_attribute("name") for frame in self.frames()]
        self.show("application")
        self.click("#open-app")
        self.wait(lambda: [frame for frame in self.frames()
                           if frame.get_attribute("name") not in before])

    def frames(self):
        return self.driver.find_elements(By.CSS_SELECTOR, "#app-frame")

    def app_page(self):
        """What the application's page shows right now."""
        return self.in_frame(lambda: self.run(APP_PAGE))

    def page(self, name, seconds=10, **wanted):
        """Wait for the application's page install, index or refused, ready for a person."""
        def there():
            seen = self.app_page()
            fits = seen["page"] == name and seen["ready"]
            return fits and all(seen[key] == value for key, value in wanted.items()) and seen
        return self.wait(there, seconds, f"the application never showed {name} {wanted}")

    def save(self, key):
        """Type the operator's key, press Save."""
        def fill():
            self.type(".operator", key)
            self.find("#sms-settings button").click()
        self.show("application")
        self.in_frame(fill)

    def install(self, key):
        """Open the application, save the key; installFinish opens its settings page."""
        self.open_app()
        self.page("install")
        self.save(key)
        self.page("index")

    def save_at(self):
        """Where the form's button ends, in a page that is not scrolled."""
        inside = self.in_frame(lambda: self.run(BOTTOM, "#sms-settings button"))
        return inside + self.run(FRAME)

    def warned(self, to, text):
        """The settings page tells of the last pass; a fresh message gives it something to try."""
        self.send(to, text)
        self.open_app()
        return any(re.search(r"\w{4}", warning) for warning in self.page("index")["warnings"])

    # The messages and the wire

    def send(self, to, text):
        """Write a message in the contact's card."""
        self.show("card")
        self.type("#phone", to)
        self.type("#text", text)
        self.click("#send")

    def messages(self):
        return self.run(MESSAGES)

    def statuses(self):
        return [one["status"] for one in self.messages()]

    def message(self, text, status, seconds=12):
        """Wait until the message with this text has this status."""
        return self.wait(
            lambda: [one for one in self.messages()
                     if text in one["text"] and one["status"] == status],
            seconds, f"{text!r} was never {status}")[0]

    def wire(self, text="", **wanted):
        """The lines of the wire that carry this text, and these script, who, to."""
        return [line for line in self.run(WIRE) if text in line["text"]
                and all(line[key] == value for key, value in wanted.items())]
