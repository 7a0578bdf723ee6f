"""The training portal's page: the next step, the card, the switches, the disk, starting over."""
import json
import os
import re
import time

import pytest
from pretend import GOOD_KEY, World, install
from pretend.tab import FLAT, LAYOUTS, PHONE, TEXTS, WIDE, Tab
from selenium.webdriver.common.action_chains import ActionChains

NUMBER, TEXT = "+7 (999) 000-00-00", "Ваш код подтверждения: 1234"
SWITCHES = ("operator-down", "no-money", "portal-503", "token-expired", "renamed", "robot",
            "twice", "burst", "forged", "update", "uninstall")


@pytest.fixture
def layouts(tab):
    """Go through both languages and three sizes of the page that is open."""
    def each():
        for lang, size in LAYOUTS:
            tab.lay_out(lang, size)
            yield f"{lang} {size}"
    return each


# The next step ---------------------------------------------------------------------------------

def test_the_line_at_the_top_says_the_next_step_and_stays_in_sight(tab, box, layouts):
    def text(step):
        return tab.say("next-" + step, name=tab.say("operator-down"))

    def says(step):
        for layout in layouts():
            tab.wait(lambda: tab.text("#next-step") == text(step),
                     message=f"{step} {layout}: {tab.text('#next-step')}")
            tab.run("const end = document.querySelector('#wire-part'); end.scrollIntoView(false)")
            assert tab.in_sight("#next") and tab.text("#note"), (step, layout)

    def says_so_again(step):
        tab.wait(lambda: tab.text("#next-step") == text(step), message=step)
        tab.driver.refresh()
        tab.wait_for_box()
        says(step)
        assert tab.text("#note") == tab.say("now-" + step)

    tab.driver.get(tab.address)
    tab.wait_for_box()
    tab.lay_out("ru", WIDE)
    says_so_again("open")
    tab.click("#user-employee")
    says("employee")
    tab.click("#user-admin")
    tab.open_app()
    says("save")
    tab.page("install")
    tab.save(GOOD_KEY)
    tab.page("index")
    says_so_again("send")
    box.smsru.down = True
    tab.send(NUMBER, TEXT)
    says_so_again("trouble")
    box.smsru.down, box.smsru.delay = False, 3600
    says_so_again("watch")
    box.smsru.delay = 0
    tab.message(TEXT, "delivered")
    says_so_again("delivered")
    tab.click("#switch-uninstall")
    says_so_again("uninstalled")


TOO_LONG = """
const [note, step, bar] = ['note', 'next-step', 'step'].map((id) => document.getElementById(id));
const [notes, steps] = arguments;
const room = innerWidth < 760 ? bar : bar.parentElement;
step.textContent = steps.sort((a, b) => b.length - a.length)[0];
return notes.filter(function (text) {
  note.textContent = text;
  return bar.scrollHeight > room.clientHeight || note.getBoundingClientRect().top < 0;
});"""


def test_no_text_is_too_long_for_the_line_at_the_top(tab):
    tab.driver.get(tab.address)
    tab.wait_for_box()
    for lang, size in (*LAYOUTS, ("ru", (800, 700))):
        tab.lay_out(lang, size)
        notes = [text for name, text in TEXTS[lang].items()
                 if re.match("note-|now-|copied|missing-", name)]
        steps = [text for name, text in TEXTS[lang].items() if name.startswith("next-")]
        assert tab.run(TOO_LONG, notes, steps) == [], (lang, size)


def test_a_countdown_says_when_the_next_try_comes(tab, box, layouts):
    def shown():
        return int((re.findall(r"\d+", tab.text("#countdown")) or [0])[0])

    assert install(box.world).status_code == 200
    tab.open()
    box.smsru.down = True
    tab.send(NUMBER, TEXT)
    tab.wait(lambda: box.world.app.queue())
    box.world.app.kill()  # so that nobody tries again meanwhile
    until = time.time() + 30
    for path in (*box.world.app.queue(), box.world.app.data / "send.lock"):
        os.utime(path, (until, until))
    tab.wait(shown)
    first = shown()
    assert 20 < first <= 30
    tab.wait(lambda: shown() == first - 1, 3, "it does not count")
    tab.wait(lambda: shown() == first - 2, 3, "it does not count")
    for layout in layouts():
        wanted = re.escape(tab.say("countdown-operator", seconds="S")).replace("S", r"\d+")
        assert re.fullmatch(wanted, tab.text("#countdown")), layout


# The card --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("phone", "text", "missing"), [
    ("", TEXT, "phone"), ("+() -", TEXT, "phone"), (NUMBER, "", "text"), (NUMBER, " \n", "text")])
def test_an_empty_phone_or_text_is_refused_in_words(ready, box, phone, text, missing):
    for lang in ("ru", "en"):
        ready.lay_out(lang, PHONE)
        for send in ("#send", "#switch-robot"):
            ready.send(phone, text)
            ready.click(send)
            assert ready.text("#form-error") == ready.say("missing-" + missing)
            assert ready.find("#" + missing).get_attribute("aria-invalid") == "true"
            assert ready.run("return document.activeElement.id") == missing
    assert box.portal.messages == {}
    ready.send(NUMBER, TEXT)
    assert ready.text("#form-error") == ""
    ready.message(TEXT, "delivered")


def test_a_renamed_portal_keeps_what_was_typed(ready, box):
    ready.show("card")
    ready.type("#phone", "+7 111 & 222")
    ready.type("#text", "typed, but not sent + 1%")
    ready.click("#switch-renamed")
    ready.wait(lambda: ready.driver.current_url.startswith(box.portal.url))
    ready.wait_for_box()
    values = [ready.find(css).get_attribute("value") for css in ("#phone", "#text")]
    assert values == ["+7 111 & 222", "typed, but not sent + 1%"]


@pytest.mark.parametrize(("operator", "endings"), [("demo", "01 02 03"), ("smsru", "11 22")])
def test_hints_fit_the_operator_and_the_number_there_gets_through(chrome, operator, endings):
    with World() as world:
        world.start_box(SMS_OPERATOR=operator, STATUSES_EVERY=0.4, RETRY_AFTER=0.01)
        tab = Tab(chrome, world.portal.url)
        assert install(world).status_code == 200
        for lang in ("ru", "en"):
            tab.open(lang).page("index")
            tab.show("card")
            assert re.findall(r"\d+", tab.text("#phone-hint")) == endings.split()
            shown = [name for name in ("operator-down", "no-money")
                     if tab.find("#switch-" + name).is_displayed()]
            assert bool(shown) == (operator == "smsru"), "they make trouble for SMS.ru"
        tab.show("application")
        assert tab.find("#key-hint").is_displayed() == (operator == "smsru")
        tab.show("card")
        tab.click("#send")
        tab.wait(lambda: tab.statuses() == ["delivered"])


# The switches ----------------------------------------------------------------------------------

def test_every_switch_is_in_sight_without_scrolling(ready, layouts):
    tab = ready
    for layout in layouts():
        if tab.size in (WIDE, FLAT):
            hidden = [name for name in SWITCHES if not tab.in_sight("#switch-" + name)]
            assert hidden == [], layout
            assert tab.run("return document.scrollingElement.scrollHeight") == tab.size[1], layout
    found = [[one.get_attribute("id")[7:] for one in tab.driver.find_elements("css selector", css)]
             for css in ("#toggles [role=switch]", "#actions button")]
    assert found == [list(SWITCHES[:3]), list(SWITCHES[3:])]


def test_each_switch_says_what_it_does(tab, layouts):
    """Beside it as long as the pointer is on it; where nothing is pointed with, always."""
    tab.driver.get(tab.address)
    tab.wait_for_box()
    for layout in layouts():
        for name in SWITCHES if tab.size == PHONE else SWITCHES[2::4]:
            if tab.size != PHONE:
                ActionChains(tab.driver).move_to_element(tab.find("#switch-" + name)).perform()
            assert tab.text("#why-" + name) == tab.say(name + "-why"), layout
            assert tab.size == PHONE or tab.in_sight("#why-" + name), (layout, name)


def test_a_switch_answers_where_it_can_be_seen(ready, layouts):
    for layout in layouts():
        ready.click("#switch-forged")
        said = ready.say("note-forged", status="403, 403")
        ready.wait(lambda: ready.text("#note") == said)  # noqa: B023
        assert ready.in_sight("#note"), layout
        ready.click("#switch-token-expired")
        ready.wait(lambda: ready.text("#note") == ready.say("note-token-expired"))
        assert ready.in_sight("#note"), layout


# Requests that wait, the disk -------------------------------------------------------------------

def test_a_request_is_there_while_it_waits_for_its_answer(ready, box, hold):
    hold(box.smsru, "/sms/send")
    ready.send(NUMBER, TEXT)
    css = "#wire .pending[data-who=app]"
    ready.wait(lambda: ready.text(css + " .code") == ready.say("pending"))
    ready.wait(lambda: ready.find(css + " .arrow").value_of_css_property(
        "border-bottom-style") == "dashed")
    hold.end.set()
    ready.message(TEXT, "delivered")
    assert len(ready.wire("/sms/send")) == 1
    assert ready.driver.find_elements("css selector", "#wire .pending") == []


WATCH = """
window.moves = [];
new MutationObserver(function (changes) {
  changes.forEach(({ target, addedNodes, removedNodes }) => {
    if (!target.matches('.files')) return;
    const folder = target.closest('.folder').id.slice(7);
    addedNodes.forEach((file) => moves.push([folder, file.dataset.name]));
    const gone = [...removedNodes].filter((file) => !file.isConnected);
    gone.forEach((file) => moves.push(['gone', file.dataset.name]));
  });
  document.querySelectorAll('.file').forEach((file) => {
    if (file.getAnimations().length) window.flew = file.dataset.name;
  });
}).observe(document.getElementById('folders'), { childList: true, subtree: true });"""


def test_a_file_moves_from_folder_to_folder_and_a_click_shows_it(ready, box):
    box.smsru.down, box.smsru.slow, box.smsru.delay = True, 0.8, 0.8
    ready.run(WATCH)
    ready.send(NUMBER, TEXT)
    ready.click("#folder-new .file")
    shown = ready.wait(lambda: json.loads(ready.text("#file-json") or "{}"))
    assert (shown["to"], shown["text"], shown["status"]) == (NUMBER, TEXT, "")
    box.smsru.down = False
    name = shown["message_id"] + ".json"
    ready.wait(lambda: [name, "sent"][::-1] in ready.run("return moves"))
    ready.wait(lambda: json.loads(ready.text("#file-json"))["operator_id"])
    assert json.loads(ready.text("#file-json"))["text"] == "", "little is kept"
    ready.wait(lambda: ready.text("#file-json") == ready.say("file-gone"))
    way = [folder for folder, moved in ready.run("return moves") if moved == name]
    way = [folder for folder, before in zip(way, ["", *way]) if folder != before]
    assert "new" in way and way[-3:] == ["sending", "sent", "gone"]
    assert ready.run("return window.flew") == name, "it jumped"


def test_after_a_reload_the_card_is_there_and_each_group_has_its_messages_text(ready):
    ready.send(NUMBER, TEXT)
    ready.message(TEXT, "delivered")
    ready.driver.refresh()
    ready.wait_for_box()
    heads = "return [...document.querySelectorAll('.group-head')].map((one) => one.textContent)"
    ready.wait(lambda: any(TEXT in head for head in ready.run(heads)))
    assert ready.in_sight("#card")


# Starting over ----------------------------------------------------------------------------------

def test_a_button_starts_over(ready, box):
    ready.click("#switch-operator-down")
    ready.send(NUMBER, TEXT)
    ready.wait(lambda: box.world.app.queue())
    ready.run("window.marked = true")
    ready.click("#start-over")
    ready.wait(lambda: not ready.run("return window.marked"))
    ready.wait_for_box()
    ready.wait(lambda: ready.text("#next-step") == ready.say("next-open"))
    assert (ready.messages(), ready.wire()) == ([], [])
    assert box.world.app.queue() == [] and not box.portal.installed and not box.smsru.down
    ready.install(GOOD_KEY)
    ready.send(NUMBER, TEXT)
    ready.message(TEXT, "delivered")
