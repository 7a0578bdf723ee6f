"""What can go wrong, by clicks: each switch of the training portal, and what comes of it."""
import json

import pytest
from pretend import GOOD_KEY

NUMBER, TEXT = "+7 (999) 000-00-00", "Ваш код подтверждения: 1234"


def index_warns(tab):
    return tab.warned(NUMBER, TEXT)


def portal_refuses(tab):
    return tab.wire("503", who="app", to="portal")


@pytest.mark.parametrize(("switch", "shown"), [
    ("operator-down", index_warns), ("no-money", index_warns), ("portal-503", portal_refuses)])
def test_trouble_is_shown_and_the_message_waits_until_it_is_over(ready, switch, shown):
    def turn(state):
        ready.click("#switch-" + switch)
        button = ready.find("#switch-" + switch)
        ready.wait(lambda: button.get_attribute("aria-checked") == state)

    turn("true")
    ready.send(NUMBER, TEXT)
    ready.message(TEXT, "sent")
    ready.wait(lambda: shown(ready), 20)
    assert set(ready.statuses()) == {"sent"}
    turn("false")
    ready.wait(lambda: set(ready.statuses()) == {"delivered"}, 20)


@pytest.mark.parametrize(("switch", "line"), [
    ("token-expired", {"who": "app", "to": "oauth", "text": "/oauth/token"}),
    ("renamed", {"who": "app", "to": "portal", "text": "302"}),
    ("renamed", {"who": "app", "to": "oauth", "text": "app.info"}),
    ("update", {"who": "app", "to": "portal", "text": "messageservice.sender.add"})])
def test_what_the_app_puts_right_by_itself_does_not_stop_a_message(ready, switch, line):
    note = ready.text("#note")
    ready.click("#switch-" + switch)
    ready.wait(lambda: ready.text("#note") not in ("", note) and ready.find("#send").is_enabled())
    ready.wait(lambda: ready.find("#switch-" + switch).get_attribute("aria-busy") is None)
    ready.send(NUMBER, TEXT)
    ready.message(TEXT, "delivered")
    assert ready.wait(lambda: ready.wire(**line))
    ready.open_app()
    assert ready.page("index")["warnings"] == []


def test_a_renamed_portal_keeps_its_page_and_its_frame(ready, box):
    old = box.portal.url
    ready.click("#switch-renamed")
    ready.wait(lambda: not ready.driver.current_url.startswith(old))
    assert ready.driver.current_url.startswith(box.portal.url)
    ready.page("index", lang="ru")
    ready.driver.get(old)  # a bookmark of the old address
    ready.wait(lambda: ready.driver.current_url.startswith(box.portal.url))


@pytest.mark.parametrize("switch", ["robot", "twice"])
def test_one_message_comes_of_it(ready, box, switch):
    ready.show("card")
    ready.type("#text", TEXT)
    ready.click("#switch-" + switch)
    ready.message(TEXT, "delivered")
    assert ready.statuses() == ["delivered"]
    assert [one["msg"] for one in box.smsru.sent] == [TEXT]
    calls = [line for line in ready.wire("/handler", who="portal", to="app", script="handler")
             if "200" in line["text"]]
    assert len(calls) == (2 if switch == "twice" else 1)


def settings(box):
    """What the app has saved, without the account of its last pass."""
    saved = json.loads((box.world.app.data / "settings.json").read_text("utf-8"))
    return {name: value for name, value in saved.items() if name != "last_pass"}


def test_a_forged_call_is_refused_and_changes_nothing(ready, box):
    before = settings(box)
    ready.click("#switch-forged")
    ready.wait(lambda: "403" in ready.text("#note"))
    assert ready.wait(lambda: len(ready.wire("403", to="app")) >= 2)
    assert (ready.messages(), box.smsru.sent, box.world.app.queue()) == ([], [], [])
    assert settings(box) == before


def test_a_burst_of_100_is_shown_to_the_end(ready, box):
    for _ in range(300):  # so that the wire is a long one already
        box.world.wire.add("app", "portal", "POST", "/rest/profile.json")
    ready.click("#switch-burst")
    ready.wait(lambda: ready.statuses() == 100 * ["delivered"], 30)
    assert len({one["id"] for one in ready.messages()}) == 100
    assert len(box.smsru.sent) == 100
    last = box.world.wire.exchanges[-1]["n"]
    ready.wait(lambda: ready.find(f"#wire [data-n='{last}']"))
    assert len(ready.wire()) == 400  # older lines make room
    ready.wait(lambda: ready.run("""const box = document.getElementById('wire-scroll');
        return box.scrollTop + box.clientHeight >= box.scrollHeight - 2"""))


def test_the_other_endings_are_shown_as_well(ready):
    ready.send("+7 999 000-00-11", "to nobody")
    ready.send("+7 999 000-00-22", "no way")
    ready.message("to nobody", "undelivered")
    ready.message("no way", "failed")


def test_an_uninstalled_app_can_be_installed_again(ready, box):
    ready.click("#switch-uninstall")
    ready.wait(lambda: not ready.find("#send").is_enabled())
    assert "200" in ready.text("#note")
    assert GOOD_KEY not in json.dumps(settings(box))
    ready.install(GOOD_KEY)
    ready.send(NUMBER, TEXT)
    ready.message(TEXT, "delivered")
