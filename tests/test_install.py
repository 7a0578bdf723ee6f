"""install.php: the frame's form, what Save does, and the application's events."""
import json
import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from pretend import GOOD_KEY, Browser, Party, install, until
from steps import code_of, handler_url, send, texts, tried

EVENTS = ["ONAPPUNINSTALL", "ONAPPUPDATE"]


RETRY_AFTER = 1  # second


@pytest.fixture
def ours(blank):
    """The app is installed by an administrator through the frame."""
    assert install(blank).status_code == 200
    return blank


def settings(app):
    path = app.data / "settings.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def bound(world):
    """The events that the portal will tell the app about, and where."""
    return sorted((one["event"], one["handler"]) for one in world.portal.bindings)


def methods(world, name=""):
    """The REST methods that were called, in their order, of one kind if asked for."""
    called = [path.rpartition("/")[2].removesuffix(".json") for path, _ in world.portal.requests]
    return [one for one in called if name in one]


def wait_in_queue(world):
    """Leave one message in the queue: the operator is down while it comes."""
    world.smsru.down = True
    tried(world.app, send(world, "text", message_id="waits"))


# The pages -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("lang", "shown"), [("ru", "ru"), ("en", "en"), ("de", "en"), ("", "en")])
def test_the_frame_gets_a_form_with_its_own_fields(blank, lang, shown):
    world = blank
    browser = Browser(world)
    answer = browser.open("install", lang)
    query = {name: one[0] for name, one in parse_qs(urlsplit(browser.url).query).items()}
    form = browser.form.fields
    assert answer.status_code == 200
    assert {**query, **browser.frame}.items() <= form.items()
    assert "api_key" in form
    assert re.search(rf"<html[^>]* lang=\"{shown}\"", answer.text)
    assert browser.form.action == "save"  # relative: the app may live under a path


@pytest.mark.parametrize("path", ["", "index", "install"])
def test_a_page_opened_outside_a_frame_says_how_to_open_it(blank, path):
    answer = requests.get(blank.app.url + path, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].lower() == "text/html; charset=utf-8"
    assert "Bitrix24" in answer.text
    assert "sms-settings" not in answer.text
    assert "/api/v1/" not in answer.text  # BX24.js throws outside a frame


@pytest.mark.parametrize("missing", [
    ["C_REST_CLIENT_ID"], ["C_REST_CLIENT_SECRET"], ["C_REST_CLIENT_ID", "C_REST_CLIENT_SECRET"]])
def test_a_missing_variable_is_named_everywhere(world, missing):
    app = world.start_app(STATUSES_EVERY=0, **dict.fromkeys(missing))
    fine = {"C_REST_CLIENT_ID", "C_REST_CLIENT_SECRET"} - set(missing)
    pages = [Browser(world).open(page).text for page in ("install", "index", "")]
    saved = requests.post(app.url + "save", data={"api_key": GOOD_KEY}, timeout=10)
    assert (saved.status_code, saved.json()["error"]) == (503, "NO_CLIENT_ID")
    for text in [*pages, app.output(), saved.text]:
        assert all(name in text for name in missing)
        assert not any(re.search(rf"\b{name}\b", text) for name in fine)
    assert settings(app) == {}


def test_demo_says_everywhere_that_nothing_is_sent(world):
    app = world.start_app(STATUSES_EVERY=0, SMS_OPERATOR="demo")
    first_page = Browser(world).open("install", "en").text
    answer = install(world, "any key")
    second_page = Browser(world).open("index", "en").text
    for page in (first_page, second_page):
        assert texts("en")["demo"] in unescape(page)
    for line in (answer.json()["sender"]["NAME"], app.output().split(" GET /")[0]):
        assert "demo: nothing is sent" in line


# Save ------------------------------------------------------------------------------------------

def test_install_from_the_frame(blank):
    world, app = blank, blank.app
    answer = install(world)
    assert answer.status_code == 200, answer.text
    sender = answer.json()["sender"]
    assert sorted(sender) == ["CODE", "DESCRIPTION", "HANDLER", "NAME", "TYPE"]
    assert (sender["CODE"], sender["TYPE"]) == (code_of(world), "SMS")
    assert sender["NAME"]
    assert world.portal.senders[sender["CODE"]]["DESCRIPTION"], "lost beside a NAME of one text"
    assert re.fullmatch(re.escape(app.url) + r"handler\?key=[\w-]{20,}", sender["HANDLER"])
    assert handler_url(world) == sender["HANDLER"]
    assert bound(world) == [(event, app.url + "install") for event in EVENTS]
    assert GOOD_KEY in json.dumps(settings(app))
    assert settings(app)["member_id"] == world.portal.member_id


def test_the_key_is_checked_then_saved_then_the_portal_is_told(blank):
    world, app = blank, blank.app
    seen = []

    def look(method, path, fields):
        if "event.bind" in path or path.startswith(("/auth", "/my")):
            seen.append((path, GOOD_KEY in json.dumps(settings(app))))

    world.portal.trouble = world.smsru.trouble = look
    install(world)
    assert len(seen) >= 2
    assert seen[0] == ("/auth/check", False)
    assert all("event.bind" in path and saved for path, saved in seen[1:])


def refuse_with(code):
    def trouble(world):
        world.smsru.refuse = code
    return trouble


def make_down(world):
    world.smsru.down = True


def unreachable(world):
    world.smsru.stop()


@pytest.mark.parametrize(("trouble", "key", "status", "error"), [
    (None, "wrong key", 400, "OPERATOR_KEY"),
    (None, "", 400, "OPERATOR_KEY"),
    (refuse_with(301), GOOD_KEY, 400, "OPERATOR_KEY"),
    (refuse_with(220), GOOD_KEY, 503, "OPERATOR_DOWN"),
    (make_down, GOOD_KEY, 503, "OPERATOR_DOWN"),
    (unreachable, GOOD_KEY, 503, "OPERATOR_DOWN"),
])
def test_a_key_that_is_not_accepted_saves_nothing_and_may_be_sent_again(
        blank, trouble, key, status, error):
    world, app = blank, blank.app
    if trouble:
        trouble(world)
    browser = Browser(world)
    browser.open("install")
    answer = browser.save(api_key=key)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"]
    assert (settings(app), bound(world)) == ({}, [])
    if world.smsru.server is None:
        world.smsru.start()
    world.smsru.refuse, world.smsru.down = None, False
    assert browser.save(api_key=f" {GOOD_KEY} ").status_code == 200  # pasted with its spaces
    assert f'"{GOOD_KEY}"' in json.dumps(settings(app))


@pytest.mark.parametrize(("party", "error"), [("oauth", "OAUTH_SERVER"), ("portal", "PORTAL")])
def test_save_without_the_portal_or_its_oauth_server_saves_nothing(blank, party, error):
    world, app = blank, blank.app
    browser = Browser(world)
    browser.open("install")
    for trouble in ("down", "answers HTML"):
        if trouble == "down":
            getattr(world, party).stop()
        else:
            getattr(world, party).start()
            getattr(world, party).trouble = lambda *request: (502, "<html>Bad Gateway", {})
        answer = browser.save(api_key=GOOD_KEY)
        assert (answer.status_code, answer.json()["error"]) == (503, error), trouble
        assert settings(app) == {}
    getattr(world, party).trouble = None
    assert browser.save(api_key=GOOD_KEY).status_code == 200


def test_a_portal_without_rest_says_so(blank):
    """ "REST API is available only on commercial plans", with the code that employees get too."""
    blank.portal.trouble = lambda *request: (401, {"error": "ACCESS_DENIED"}, {})
    browser = Browser(blank)
    browser.open("install")
    answer = browser.save(api_key=GOOD_KEY)
    assert (answer.status_code, answer.json()["error"]) == (503, "ACCESS_DENIED")
    assert settings(blank.app) == {}


def test_an_empty_key_keeps_the_saved_key(ours):
    world, app = ours, ours.app
    before = settings(app)
    browser = Browser(world)
    browser.open("index")
    assert browser.save(api_key="").status_code == 200
    assert browser.save(api_key="wrong key").status_code == 400
    after = settings(app)
    assert GOOD_KEY in json.dumps(after)
    assert "wrong key" not in json.dumps(after)
    assert after["access_token"] == browser.frame["AUTH_ID"] != before["access_token"]
    assert world.smsru.requests[-1][1]["api_id"] == "wrong key"
    assert world.smsru.requests[-2][1]["api_id"] == GOOD_KEY  # the saved one is checked as well


def test_a_sender_that_is_registered_already_gets_the_new_address(ours):
    code, wanted = code_of(ours), handler_url(ours)
    ours.portal.senders[code]["HANDLER"] = "https://old.example.com/handler"
    ours.portal.requests.clear()
    browser = Browser(ours)
    browser.open("index")
    sender = browser.save(api_key="").json()["sender"]
    assert (list(ours.portal.senders), handler_url(ours)) == ([code], wanted)
    assert (sender["CODE"], sender["HANDLER"]) == (code, wanted)
    assert methods(ours, "sender.") == ["messageservice.sender.update"], "add is the page's step"
    send(ours, "text")


def test_code_and_name_are_variables(world):
    world.start_app(STATUSES_EVERY=0, SENDER_CODE="acme-sms", SENDER_NAME="Acme: texts")
    sender = install(world).json()["sender"]
    assert (sender["CODE"], sender["NAME"]) == ("acme-sms", "Acme: texts")
    assert code_of(world) == "acme-sms"
    send(world, "text")


@pytest.mark.parametrize("error", ["ERROR_EVENT_BINDING_EXISTS", "ERROR_CORE"])
def test_binding_the_events_twice_is_tolerated(blank, error):
    world, app = blank, blank.app
    world.portal.binding_error = error
    for _ in range(2):
        assert install(world).status_code == 200
        assert bound(world) == [(event, app.url + "install") for event in EVENTS]


def test_an_event_that_is_not_bound_is_an_error_and_save_can_be_repeated(world):
    app = world.new_app(STATUSES_EVERY=0)
    app.env["PUBLIC_URL"] = f"http://localhost:{app.env['PORT']}/"  # a host without a dot
    world.portal.app_url = app.start().url
    answer = install(world)
    assert (answer.status_code, answer.json()["error"]) == (503, "ERROR_WRONG_HANDLER_URL")
    app.stop()
    del app.env["PUBLIC_URL"]
    app.start()
    world.app = app
    assert install(world).status_code == 200
    assert bound(world) == [(event, app.url + "install") for event in EVENTS]


def test_a_second_portal_is_refused_until_settings_json_is_deleted(ours):
    world, app = ours, ours.app
    before = (app.data / "settings.json").read_bytes()
    second = world.another_portal()
    browser = Browser(world, portal=second)
    browser.open("install")
    answer = browser.save(api_key=GOOD_KEY)
    assert (answer.status_code, answer.json()["error"]) == (403, "OTHER_PORTAL")
    assert "settings.json" in answer.json()["error_description"]
    assert second.fire("ONAPPINSTALL") == 403
    assert (app.data / "settings.json").read_bytes() == before
    assert (second.senders, second.bindings) == ({}, [])
    (app.data / "settings.json").unlink()
    assert browser.save(api_key=GOOD_KEY).status_code == 200
    assert settings(app)["member_id"] == second.member_id


# The address -----------------------------------------------------------------------------------

class PathStrippingProxy(Party):
    """What nginx does with `location /sms/ { proxy_pass http://app/; }`."""

    name = "app"
    target = None

    def noted(self, method, path):
        return False

    def answer(self, method, path, fields, request):
        if not path.startswith("/sms/"):
            return 404, "not here", {}
        answer = requests.request(method, self.target + request.path[len("/sms/"):],
                                  data=request.form, timeout=10, allow_redirects=False)
        return answer.status_code, answer.content, {
            name: answer.headers[name] for name in ("Content-Type", "Content-Security-Policy")
            if name in answer.headers}


def test_behind_a_proxy_that_strips_the_path(world):
    proxy = PathStrippingProxy().start()
    try:
        app = world.start_app(STATUSES_EVERY=0, PUBLIC_URL=proxy.url + "/sms/")
        proxy.target, world.portal.app_url = app.url, proxy.url + "/sms/"
        assert install(world).status_code == 200
        assert handler_url(world).startswith(proxy.url + "/sms/handler?key=")
        assert bound(world) == [(event, proxy.url + "/sms/install") for event in EVENTS]
        send(world, "text")
        until(lambda: world.smsru.sent)
        assert world.portal.fire("ONAPPUPDATE") == 200
        assert handler_url(world).startswith(proxy.url + "/sms/handler?key=")
    finally:
        proxy.stop()


def test_a_wrong_public_url_is_told_in_words(world):
    world.start_app(STATUSES_EVERY=0, PUBLIC_URL="http://mydomain.ru/sms/")
    browser = Browser(world)
    browser.open("install")
    assert browser.save(api_key=GOOD_KEY).json()["error"] == "WRONG_HOST"
    assert settings(world.app) == {}
    assert texts("ru")["WRONG_HOST"] in unescape(browser.open("index", lang="ru").text)


@pytest.mark.parametrize("given", ["https://mydomain.ru/sms/", "https://mydomain.ru/sms"])
def test_public_url_keeps_its_path(world, given):
    world.start_app(STATUSES_EVERY=0, PUBLIC_URL=given)
    assert install(world).status_code == 200
    assert handler_url(world).startswith("https://mydomain.ru/sms/handler?key=")
    assert bound(world) == [(event, "https://mydomain.ru/sms/install") for event in EVENTS]


# Events ----------------------------------------------------------------------------------------

def test_a_rest_only_installation_registers_the_sender_from_the_server(world):
    app = world.start_app(STATUSES_EVERY=0, SMS_API_KEY=GOOD_KEY)
    for steps in (["update", "add"], ["update"]):  # the second time everything is there already
        world.portal.requests.clear()
        assert world.portal.fire("ONAPPINSTALL") == 200
        assert methods(world, "sender.") == [f"messageservice.sender.{one}" for one in steps]
        assert len(world.portal.senders) == 1
        assert handler_url(world).startswith(app.url + "handler?key=")
        assert bound(world) == [(event, app.url + "install") for event in EVENTS]
    send(world, "text")
    until(lambda: [one["msg"] for one in world.smsru.sent] == ["text"])
    assert settings(app)["refresh_token"] in world.oauth.refresh


def test_a_rest_only_installation_moves_to_where_its_next_event_arrives(world):
    first = world.start_app(STATUSES_EVERY=0, SMS_API_KEY=GOOD_KEY)
    assert world.portal.fire("ONAPPINSTALL") == 200
    first.stop()
    second = world.start_app(STATUSES_EVERY=0, SMS_API_KEY=GOOD_KEY, DATA_DIR=first.data)
    assert world.portal.fire("ONAPPINSTALL", second.url + "install") == 200
    assert handler_url(world).startswith(second.url + "handler?key=")
    assert bound(world) == [(event, second.url + "install") for event in EVENTS]


def failing(method):
    """Trouble at the portal: one method breaks."""
    return lambda _, path, fields: (
        (500, {"error": "INTERNAL_SERVER_ERROR"}, {}) if path.endswith(method + ".json") else None)


STEPS = ["sender.update", "sender.add", "event.bind"]


@pytest.mark.parametrize("method", STEPS)
def test_a_rest_only_installation_says_what_bitrix24_refused(world, method):
    world.start_app(STATUSES_EVERY=0, SMS_API_KEY=GOOD_KEY)
    world.portal.trouble = failing(method)
    assert world.portal.fire("ONAPPINSTALL") == 503
    assert "public_url" not in settings(world.app)


def test_a_saved_key_wins_over_the_variable(world):
    world.smsru.keys.add("the saved key")
    world.start_app(STATUSES_EVERY=0, SMS_API_KEY="the key of the environment")
    assert install(world, "the saved key").status_code == 200
    send(world, "text")
    until(lambda: world.smsru.sent)
    assert world.smsru.requests[-1][1]["api_id"] == "the saved key"


def test_an_update_registers_again_and_brings_a_new_application_token(ours):
    world, app = ours, ours.app
    old_handler = handler_url(world)
    world.portal.requests.clear()
    assert world.portal.fire("ONAPPUPDATE") == 200
    assert handler_url(world) == old_handler
    assert bound(world) == [(event, app.url + "install") for event in EVENTS]
    after = settings(app)
    assert after["application_token"] == world.portal.application_token
    assert after["access_token"] in world.oauth.tokens
    assert GOOD_KEY in json.dumps(after)
    registered = ["messageservice.sender.update", "messageservice.sender.add"]
    assert methods(world, "sender.") == registered, "nothing is deleted first"
    assert methods(world, "event.") == ["event.bind"] * 2
    send(world, "after the update")
    until(lambda: [one["msg"] for one in world.smsru.sent] == ["after the update"])


@pytest.mark.parametrize("method", STEPS)
def test_an_update_that_fails_is_repaired_by_save(ours, method):
    world, old_handler = ours, handler_url(ours)
    world.portal.trouble = failing(method)
    assert world.portal.fire("ONAPPUPDATE") == 503
    assert world.portal.senders == {}
    world.portal.trouble = None
    browser = Browser(world)
    browser.open("index")
    answer = browser.save(api_key="")
    assert answer.status_code == 200, answer.text
    browser.register(answer.json()["sender"])
    assert handler_url(world) == old_handler
    assert bound(world) == [(event, world.app.url + "install") for event in EVENTS]
    send(world, "after Save")
    assert world.portal.fire("ONAPPUNINSTALL") == 200, "the token that came with the update counts"


@pytest.mark.parametrize(("clean", "left"), [(1, []), (0, ["waits.json"])])
def test_an_uninstall_removes_tokens_key_and_secret(ours, clean, left):
    world, app = ours, ours.app
    wait_in_queue(world)
    known, url, code = settings(app), handler_url(world), code_of(world)
    assert world.portal.fire("ONAPPUNINSTALL", CLEAN=clean) == 200
    text = json.dumps(settings(app))
    for secret in (GOOD_KEY, url.partition("key=")[2], known["access_token"],
                   known["refresh_token"], known["application_token"]):
        assert secret not in text
    assert [path.name for path in app.queue()] == left
    answer = requests.post(url, data={"code": code, "message_id": "late"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (503, "NOT_INSTALLED")
    assert [path.name for path in app.queue()] == left
    second = world.another_portal()  # nothing ties the app to the first portal any longer
    world.smsru.down = False
    assert Browser(world, portal=second).install(api_key=GOOD_KEY).status_code == 200


@pytest.mark.parametrize("token", [None, "", "wrong", "ключ", "\ufffd"])
def test_an_uninstall_without_the_right_token_changes_nothing(ours, token):
    world, app = ours, ours.app
    wait_in_queue(world)
    before = (app.data / "settings.json").read_bytes()
    forged = {"event": "ONAPPUNINSTALL", "data[CLEAN]": "1",
              "auth[member_id]": world.portal.member_id, "auth[application_token]": token}
    answer = requests.post(app.url + "install", data=forged, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_EVENT")
    assert (app.data / "settings.json").read_bytes() == before
    assert len(app.queue()) == 1


def test_an_uninstall_is_proven_by_the_last_application_token_only(ours):
    world, old = ours, ours.portal.application_token
    assert world.portal.fire("ONAPPUPDATE") == 200
    new, world.portal.application_token = world.portal.application_token, old
    here = world.app.url + "install"
    assert world.portal.fire("ONAPPUNINSTALL", here) == 403
    assert GOOD_KEY in json.dumps(settings(world.app))
    world.portal.application_token = new
    assert world.portal.fire("ONAPPUNINSTALL", here) == 200
    assert settings(world.app) == {}


@pytest.mark.parametrize("token", [None, ""])
def test_no_token_is_no_proof_even_where_none_is_stored(blank, token):
    world, app = blank, blank.app
    browser = Browser(world)
    browser.open("install")
    assert browser.save(api_key=GOOD_KEY, APPLICATION_TOKEN="").status_code == 200  # older portals
    forged = {"event": "ONAPPUNINSTALL", "data[CLEAN]": "1", "auth[application_token]": token}
    assert requests.post(app.url + "install", data=forged, timeout=10).status_code == 403
    assert GOOD_KEY in json.dumps(settings(app))


@pytest.mark.parametrize("event", ["", "ONCRMDEALADD", "onappinstall2", "ONAPPTEST"])
def test_an_event_that_is_not_ours_is_refused(ours, event):
    world, app = ours, ours.app
    before = (app.data / "settings.json").read_bytes()
    fields = {"event": event, "auth[application_token]": world.portal.application_token}
    answer = requests.post(app.url + "install", data=fields, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_EVENT")
    assert (app.data / "settings.json").read_bytes() == before
