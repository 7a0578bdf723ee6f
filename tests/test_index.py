"""index.php: the settings page, and who gets to see what is saved."""
import json
import os
import re
import time
from html import unescape

import pytest
import requests
from pretend import ADMINISTRATOR, EMPLOYEE, Browser, install, until
from steps import handler_url, make_due, path_of, send, texts, tried

KEY = "planted-operator-key-Wxyz"  # its end occurs in no random token


def saved(app):
    return (app.data / "settings.json").read_text("utf-8")


def visible(page):
    """What a person reads: no tags with their attributes, no style, no script."""
    page = re.sub(r"(?s)<(style|script)\b.*?</\1>", " ", page)
    return unescape(re.sub(r"(?s)<[^>]*>", " ", page))


RETRY_AFTER = 1  # second


@pytest.fixture
def ours(blank):
    """The app installed with a key whose end can be searched for."""
    blank.smsru.keys.add(KEY)
    assert install(blank, KEY).status_code == 200
    return blank


@pytest.mark.parametrize("page", ["index", ""])
def test_an_administrator_sees_the_state_and_no_secret_in_full(ours, page):
    ours.smsru.down = True
    for number in range(7):
        send(ours, f"text {number}")
    before, browser = saved(ours.app), Browser(ours)
    answer = browser.open(page)
    assert answer.status_code == 200
    assert browser.form.found and browser.frame.items() <= browser.form.fields.items()
    assert "••••" in answer.text and "Wxyz" not in answer.text
    assert re.search(r"\b7\b", visible(answer.text)), "the messages that wait"
    secrets = [KEY, handler_url(ours).partition("key=")[2],
               ours.portal.client_secret, json.loads(before)["access_token"],
               json.loads(before)["refresh_token"]]
    assert [secret for secret in secrets if secret in answer.text] == []
    assert browser.form.fields["api_key"] == ""
    assert saved(ours.app) == before  # only Save brings tokens


def test_the_last_pass_is_shown(ours):
    browser = Browser(ours)
    assert "<time" not in browser.open("index").text
    ours.smsru.delay = 0
    send(ours, "text")
    assert ours.app.run("statuses")[0] == 0
    assert "<time" in browser.open("index").text


def test_what_the_messages_wait_for_stays_on_the_page(ours):
    ours.smsru.down = True
    message_id = send(ours, "text")
    tried(ours.app, message_id)
    assert ours.app.run("statuses")[0] == 1
    make_due(ours.app)  # sending rests no more, and the message is not due yet
    os.utime(path_of(ours.app, message_id), (time.time() + 60,) * 2)
    assert ours.app.run("statuses")[0] == 0, "nothing is due"
    page = visible(Browser(ours).open("index", lang="en").text)
    assert texts("en")["operator down"] in page


@pytest.mark.parametrize(("error", "name"), [
    ("invalid_grant", "press Save"), ("invalid_client", "portal invalid_client")])
def test_a_refused_refresh_is_told_with_what_to_do(ours, error, name):
    ours.smsru.delay = 0
    send(ours, "text")
    ours.portal.expire_tokens()
    ours.oauth.trouble = lambda method, path, fields: (
        (401, {"error": error}, {}) if path == "/oauth/token/" else None)
    until(lambda: ours.app.run("statuses")[0] == 1)
    assert texts("en")[name] in visible(Browser(ours).open("index", lang="en").text)


def strangers(world):
    """Who opens the page, what the app answers."""
    elsewhere = world.another_portal()
    return {"an employee": (Browser(world, EMPLOYEE), None, 403),
            "another portal's administrator": (Browser(world, portal=elsewhere), None, 403),
            "an unknown token": (Browser(world), {"AUTH_ID": "unknown"}, 403),
            "no token": (Browser(world), {"AUTH_ID": ""}, 403)}


@pytest.mark.parametrize("who", [
    "an employee", "another portal's administrator", "an unknown token", "no token"])
def test_nobody_else_sees_the_state(ours, who):
    before = saved(ours.app)
    browser, changes, status = strangers(ours)[who]
    url, fields = browser.portal.open_frame(browser.user, "index")
    answer = browser.post(url, {**fields, **(changes or {})})
    assert answer.status_code == status
    assert answer.headers["Content-Type"].lower().startswith("text/html")
    assert "Wxyz" not in answer.text
    assert saved(ours.app) == before


@pytest.mark.parametrize("party", ["oauth", "portal"])
def test_when_nobody_can_say_who_it_is_the_page_says_so(ours, party):
    browser = Browser(ours)
    url, fields = ours.portal.open_frame(ADMINISTRATOR, "index")
    getattr(ours, party).stop()
    answer = browser.post(url, fields)
    assert answer.status_code == 503
    assert answer.headers["Content-Type"].lower().startswith("text/html")
    assert "Wxyz" not in answer.text


def test_before_the_installation_there_is_a_form_and_no_state(blank):
    browser = Browser(blank)
    answer = browser.open("index")
    assert answer.status_code == 200
    assert browser.form.found
    assert browser.save(api_key="wrong").status_code == 400


def moved(world):
    """The same app at another address, as behind a new tunnel."""
    world.app.stop()
    return world.start_app(STATUSES_EVERY=0, RETRY_AFTER=1, DATA_DIR=world.app.data)


def test_a_new_address_is_warned_about_and_save_repairs_it(ours):
    old, app, browser = ours.app.url, moved(ours), Browser(ours)
    page = visible(browser.open("index").text)
    assert old.rstrip("/") in page, "where Bitrix24 still sends its messages"
    assert app.url.rstrip("/") in page
    ours.portal.requests.clear()
    answer = browser.save(api_key="")
    assert answer.status_code == 200
    assert handler_url(ours).startswith(app.url + "handler?key="), "before the page's step"
    asked = [path.rpartition("/")[2] for path, _ in ours.portal.requests]
    assert asked == ["profile.json", *["event.bind.json"] * 2,
                     "messageservice.sender.update.json", *["event.unbind.json"] * 2]
    browser.register(answer.json()["sender"])
    handlers = [one["handler"] for one in ours.portal.bindings]
    assert handlers == [app.url + "install"] * 2, "whoever has the old address gets no tokens"
    assert old.rstrip("/") not in visible(browser.open("index").text)
    send(ours, "text")


@pytest.mark.parametrize(("method", "at"), [
    ("event.bind", "old"), ("messageservice.sender.update", "old"), ("event.unbind", "new")])
def test_a_new_address_is_warned_about_until_bitrix24_has_taken_all_of_it(ours, method, at):
    before, old, app, browser = list(ours.portal.bindings), ours.app.url, moved(ours), Browser(ours)
    ours.portal.trouble = lambda _, path, fields: (
        (500, {"error": "INTERNAL_SERVER_ERROR"}, {}) if path.endswith(method + ".json") else None)
    browser.open("index")
    assert browser.save(api_key="").status_code == 503
    assert handler_url(ours).startswith(old if at == "old" else app.url)
    assert [one for one in before if one not in ours.portal.bindings] == []
    assert old.rstrip("/") in visible(browser.open("index").text), "it still gets tokens"
    ours.portal.trouble = None
    assert browser.save(api_key="").status_code == 200
    assert handler_url(ours).startswith(app.url)
    assert {one["handler"] for one in ours.portal.bindings} == {app.url + "install"}
    assert old.rstrip("/") not in visible(browser.open("index").text)


def test_a_forks_own_events_stay_bound(ours):
    own = {"event": "ONCRMDEALADD", "handler": ours.app.url + "deals"}
    ours.portal.bindings.append(own)
    moved(ours)
    browser = Browser(ours)
    browser.open("index")
    assert browser.save(api_key="").status_code == 200
    assert own in ours.portal.bindings


def test_hostile_values_are_escaped(ours):
    attack = '"><script>alert(1)</script>'
    url, fields = ours.portal.open_frame(ADMINISTRATOR, "index")
    for page in ("index", "install"):
        body = {**fields, "PLACEMENT_OPTIONS": attack, "LANG": attack, attack: "name",
                "DOMAIN": attack, "api_key": attack}
        answer = requests.post(url.replace("/index", "/" + page), data=body, timeout=10)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text


def test_a_short_key_is_saved_too_and_shows_nothing_of_itself(world):
    world.start_app(SMS_OPERATOR="demo", STATUSES_EVERY=0)
    assert install(world, api_key="tiny-key").status_code == 200
    page = Browser(world).open("index", lang="en").text
    assert re.search("<dd data-key[^>]*>(.*)</dd>", page)[1] == "••••"
