"""crest.php: tokens, renamed and busy portals, batches, a subclass; proven by passes."""
import json
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl

import pytest
import requests
import steps
from pretend import ADMINISTRATOR, GOOD_KEY, ROOT, Browser, install, until
from steps import Gate, calls, handler_url, make_due, path_of, settled

PRESS_SAVE = "an administrator must open the application and press Save"
BATCH, TOKEN, INFO = "/rest/batch.json", "/oauth/token/", "/rest/app.info"


def settings(world):
    return json.loads((world.app.data / "settings.json").read_text("utf-8"))


def accepted(world, count=1, ids=()):
    """Bring messages to the operator, ready to be reported as delivered; returns their ids."""
    world.smsru.delay = 0
    ids = [steps.send(world, "text", f"+7999{number:07d}", message_id=one)
           for number, one in enumerate(ids or [None] * count)]
    settled(world.app, *ids)
    return ids


RETRY_AFTER = 1  # second


@pytest.fixture
def ready(blank):
    """The app freshly installed."""
    assert install(blank).status_code == 200
    blank.portal.requests.clear()
    blank.oauth.requests.clear()
    return blank


def one_pass(world):
    """A pass when every pause is over."""
    make_due(world.app)
    return steps.one_pass(world)


def delivered(world, ids):
    return all(world.portal.messages[one]["history"] == ["sent", "delivered"] for one in ids)


def later(call, *args):
    """A call in a thread of its own; result() waits for what it returns or raises."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call, *args)
    pool.shutdown(wait=False)
    return future


# Tokens ----------------------------------------------------------------------------------------

def test_an_expired_token_is_refreshed_once_and_saved_before_it_is_used(ready):
    used = []

    def look(method, path, fields):
        if path == BATCH:
            used.append((fields["auth"], settings(ready)["access_token"]))

    ids, old = accepted(ready), settings(ready)
    ready.portal.expire_tokens()
    ready.portal.trouble = look
    totals = one_pass(ready)
    new = settings(ready)
    assert (totals["delivered"], totals["errors"], totals["waiting"]) == (1, {}, 0)
    assert used == [(old["access_token"],) * 2, (new["access_token"],) * 2]
    assert old["access_token"] != new["access_token"]
    assert new["refresh_token"] in ready.oauth.refresh
    secret = next(one for one in ready.wire.exchanges if one["path"] == TOKEN)
    assert "client_secret" in secret["fields"] and "?" not in secret["path"]
    ids += accepted(ready)
    assert one_pass(ready)["delivered"] == 1
    assert len(calls(ready.oauth, TOKEN)) == 1
    assert delivered(ready, ids)


@pytest.mark.parametrize(("status", "error"), [
    (401, "invalid_token"), (401, "NO_AUTH_FOUND"), (403, "insufficient_scope"),
    (403, "ACCESS_DENIED"), (500, "INTERNAL_SERVER_ERROR"), (502, None)])
def test_no_other_error_refreshes_the_token(ready, status, error):
    ids = accepted(ready)
    body = {"error": error, "error_description": "text"} if error else "<html>Bad Gateway</html>"
    ready.portal.trouble = lambda method, path, fields: (status, body, {})
    totals = one_pass(ready)
    assert totals["errors"]["portal"]
    assert totals["waiting"] == 1
    assert calls(ready.oauth, TOKEN) == []
    assert len(calls(ready.portal, BATCH)) == 1
    ready.portal.trouble = None
    assert one_pass(ready)["delivered"] == 1
    assert delivered(ready, ids)


def test_a_token_that_stays_expired_is_refreshed_only_once(ready):
    accepted(ready)
    ready.portal.trouble = lambda method, path, fields: (401, {"error": "expired_token"}, {})
    assert one_pass(ready)["errors"]["portal"]
    assert len(calls(ready.oauth, TOKEN)) == 1
    assert len(calls(ready.portal, BATCH)) == 2


@pytest.mark.parametrize("trouble", ["dismissed", "refresh refused"])
def test_without_an_administrator_the_pass_asks_for_one(ready, trouble):
    ids = accepted(ready, 2)
    if trouble == "dismissed":
        ready.portal.users[ADMINISTRATOR]["active"] = False
    else:
        ready.portal.expire_tokens()
        ready.oauth.refresh.clear()
    totals = one_pass(ready)
    assert PRESS_SAVE in totals["errors"]["portal"]
    assert totals["waiting"] == 2
    assert len(calls(ready.oauth, TOKEN)) <= 1
    make_due(ready.app)
    code, output = ready.app.run("statuses")
    assert (code, PRESS_SAVE in output) == (1, True)
    ready.portal.users[3] = {"NAME": "Вера", "ADMIN": True, "active": True}
    assert install(ready, user=3).status_code == 200
    assert one_pass(ready)["delivered"] == 2
    assert delivered(ready, ids)


@pytest.mark.parametrize("answer", [
    None, (502, "<html>Bad Gateway</html>", {}), (302, "", {"Location": "http://127.0.0.1:9/"}),
    (200, {"access_token": None, "result": []}, {}), (200, {"result": {"install": {}}}, {})])
@pytest.mark.parametrize("trouble", ["expired", "renamed"])
def test_an_oauth_server_in_trouble_takes_nothing_away(ready, trouble, answer):
    ids, before = accepted(ready), settings(ready)
    if trouble == "expired":
        ready.portal.expire_tokens()
    else:
        ready.portal.rename()
    if answer:
        ready.oauth.trouble = lambda *request: answer
    else:
        ready.oauth.stop()
    totals = one_pass(ready)
    assert totals["errors"]["portal"]
    assert PRESS_SAVE not in totals["errors"]["portal"]
    assert totals["waiting"] == 1
    after = settings(ready)
    assert {name: after[name] for name in before} == before
    ready.oauth.trouble = None
    if not answer:
        ready.oauth.start()
    assert one_pass(ready)["delivered"] == 1
    assert delivered(ready, ids)


# Races -----------------------------------------------------------------------------------------

def test_whoever_loses_the_refresh_race_uses_the_winners_token(ready):
    ids = accepted(ready, 2)
    paths = [path_of(ready.app, one) for one in ids]
    ready.portal.expire_tokens()
    held = Gate(ready.oauth, TOKEN)
    make_due(ready.app)
    os.utime(paths[1], (time.time() + 60, time.time() + 60))
    first = later(steps.one_pass, ready)
    until(lambda: held.asked, message="nobody came")
    os.utime(paths[0], (time.time() + 60, time.time() + 60))
    os.utime(paths[1], (time.time() - 5, time.time() - 5))
    (ready.app.data / "statuses.lock").unlink()  # lets a second process begin its pass as well
    second = later(ready.app.run, "statuses")
    until(lambda: len(calls(ready.portal, BATCH)) == 2, message="both met the expired token")
    held.open.set()
    totals, (code, output) = first.result(30), second.result(30)
    assert len(calls(ready.oauth, TOKEN)) == 1
    assert (totals["delivered"], totals["errors"]) == (1, {})
    assert (code, json.loads(output)["delivered"], json.loads(output)["errors"]) == (0, 1, {})
    assert delivered(ready, ids)


def test_a_key_saved_while_a_pass_refreshes_is_kept(ready):
    ids = accepted(ready)
    ready.smsru.keys.add("the new key")
    browser = Browser(ready)
    browser.open("index")
    browser.portal.expire_tokens()
    browser.open("index")  # after the old tokens ended
    held = Gate(ready.oauth, TOKEN)
    running = later(one_pass, ready)
    until(lambda: held.asked, message="nobody came")
    saving = later(lambda: browser.save(api_key="the new key"))
    until(lambda: calls(ready.smsru, "/auth/check")[-1]["api_id"] == "the new key")
    held.open.set()
    assert saving.result(30).status_code == 200
    assert running.result(30)["errors"] == {}
    after = settings(ready)
    assert "the new key" in json.dumps(after)
    assert GOOD_KEY not in json.dumps(after)
    assert after["access_token"] in ready.oauth.tokens
    assert after["refresh_token"] in ready.oauth.refresh
    assert delivered(ready, ids)


@pytest.mark.parametrize(("party", "path"), [
    ("smsru", "/sms/status"), ("portal", BATCH), ("oauth", TOKEN)])
@pytest.mark.parametrize("clean", [0, 1])
def test_an_uninstall_while_a_pass_runs_is_not_undone(ready, party, path, clean):
    accepted(ready, 3)
    address = handler_url(ready).replace("/handler", "/statuses")
    if party == "oauth":
        ready.portal.expire_tokens()
    held = Gate(getattr(ready, party), path)
    running = later(one_pass, ready)
    until(lambda: held.asked, message="nobody came")
    leaving = later(lambda: ready.portal.fire("ONAPPUNINSTALL", CLEAN=clean))
    if party != "oauth":  # there it may wait for the lock that the refresh holds
        assert leaving.result(30) == 200
    held.open.set()
    assert leaving.result(30) == 200
    running.result(30)
    text = (ready.app.data / "settings.json").read_text("utf-8")
    assert not [name for name in ("token", "key", "member_id", "last_pass") if name in text]
    assert requests.get(address, timeout=10).json()["error"] == "NOT_INSTALLED"
    assert not clean or ready.app.queue() == []


# A renamed portal: 302 ---------------------------------------------------------------------------

def test_a_renamed_portal_is_found_by_app_info_and_remembered(ready):
    ids, token, seen = accepted(ready), settings(ready)["access_token"], []
    ready.portal.rename()
    ready.portal.trouble = lambda *request: seen.append(settings(ready)["client_endpoint"])
    old = ready.portal.moved[-1]
    old.trouble = lambda *request: (302, "", {})  # a Location is not needed
    assert one_pass(ready)["errors"] == {}
    assert calls(ready.oauth, INFO) == [{"auth": token}]
    assert calls(old, BATCH) == calls(ready.portal, BATCH), "the same POST, once more"
    assert seen == [ready.portal.endpoint], "saved before it is used"
    assert calls(ready.oauth, TOKEN) == [], "a move costs no token"
    ids += accepted(ready)
    assert one_pass(ready)["delivered"] == 1
    assert (len(old.requests), len(calls(ready.oauth, INFO))) == (1, 1)
    assert delivered(ready, ids)


def test_a_portal_that_is_renamed_while_somebody_saves_is_followed_too(ready):
    old = ready.portal.url

    def rename(method, path, fields):
        if path.endswith("event.bind.json") and ready.portal.url == old:
            ready.portal.rename()
            return 302, "", {}

    ready.portal.trouble = rename
    browser = Browser(ready)
    browser.open("index")
    assert browser.save(api_key="").status_code == 200
    assert settings(ready)["client_endpoint"] == ready.portal.endpoint != old + "/rest/"
    assert len(calls(ready.portal, "event.bind.json")) == 3, "the first once more"


def expired_before(world):
    world.portal.expire_tokens()


def expired_between(world):
    """The OAuth server still knows the token, the portal a moment later no longer."""
    asked = []

    def trouble(method, path, fields):
        asked.append(path)
        return (401, {"error": "expired_token"}, {}) if len(asked) == 1 else None

    world.portal.trouble = trouble


@pytest.mark.parametrize("expired", [expired_before, expired_between])
def test_a_renamed_portal_and_an_expired_token_at_once(ready, expired):
    ids, old_token = accepted(ready), settings(ready)["access_token"]
    ready.portal.rename()
    expired(ready)
    totals, now = one_pass(ready), settings(ready)
    assert (totals["delivered"], totals["errors"]) == (1, {})
    assert len(calls(ready.oauth, TOKEN)) == 1
    assert calls(ready.portal, BATCH)[-1]["auth"] == now["access_token"] != old_token
    assert now["client_endpoint"] == ready.portal.endpoint
    assert delivered(ready, ids)


def test_a_portal_that_sends_everybody_on_is_asked_once_more_only(ready):
    ids = accepted(ready)
    ready.portal.trouble = lambda method, path, fields: (
        302, "", {"Location": ready.portal.url + path})
    totals = one_pass(ready)
    assert totals["errors"]["portal"] == "HTTP_302"
    assert (len(calls(ready.portal, BATCH)), len(calls(ready.oauth, INFO))) == (2, 1)
    ready.portal.trouble = None
    assert one_pass(ready)["delivered"] == 1
    assert delivered(ready, ids)


# Bodies ------------------------------------------------------------------------------------------

@pytest.fixture
def bodies(ready, monkeypatch):
    """What the app itself posts to the portal: (path, kind, body)."""
    seen, answer = [], ready.portal.answer

    def look(method, path, fields, request):
        if request.headers.get("X-Stand-In") != "browser":
            seen.append((path, request.headers["Content-Type"], request.body))
        return answer(method, path, fields, request)

    monkeypatch.setattr(ready.portal, "answer", look)
    return seen


def test_every_body_is_json_and_a_batchs_commands_are_urlencoded(ready, bodies):
    ids = accepted(ready, 2)
    assert install(ready).status_code == 200
    assert one_pass(ready)["delivered"] == 2
    assert {kind for _, kind, _ in bodies} == {"application/json"}
    given = {path.rpartition("/")[2]: json.loads(body) for path, _, body in bodies}
    assert all(fields["auth"] in ready.oauth.tokens for fields in given.values())
    assert given["messageservice.sender.update.json"]["HANDLER"] == handler_url(ready)
    batch = given["batch.json"]
    assert (sorted(batch["cmd"]), batch["halt"]) == (sorted(ids), 0)
    for message_id, command in batch["cmd"].items():
        method, _, query = command.partition("?")
        assert method == "messageservice.message.status.update"
        assert dict(parse_qsl(query, strict_parsing=True)) == {
            "CODE": steps.code_of(ready), "MESSAGE_ID": message_id, "STATUS": "delivered"}


# Limits and batches ----------------------------------------------------------------------------

def refuse_first(count, status, error):
    """Trouble for the first `count` batches."""
    left = [count]

    def trouble(method, path, fields):
        if path == BATCH and left[0]:
            left[0] -= 1
            return status, {"error": error, "error_description": "wait"}, {}

    return trouble


@pytest.mark.parametrize(("times", "error", "pause"), [
    (2, "QUERY_LIMIT_EXCEEDED", 0.9), (1, "OVERLOAD_LIMIT", 0.4)])
def test_a_busy_portal_is_waited_for(ready, times, error, pause):
    ids = accepted(ready)
    ready.portal.trouble = refuse_first(times, 503, error)
    began = time.monotonic()
    totals = one_pass(ready)
    waited = time.monotonic() - began
    assert (totals["delivered"], totals["errors"]) == (1, {})
    assert len(calls(ready.portal, BATCH)) == times + 1
    assert waited > pause  # half a second at first, then longer
    assert delivered(ready, ids)


def test_fifty_commands_a_request_and_a_blocked_method_ends_the_pass(ready):
    ids = accepted(ready, 120)
    ready.portal.trouble = refuse_first(1, 429, "OPERATION_TIME_LIMIT")
    totals = one_pass(ready)
    assert totals["errors"]["portal"] == "OPERATION_TIME_LIMIT"
    assert totals["waiting"] == 120
    assert len(calls(ready.portal, BATCH)) == 1
    assert one_pass(ready)["delivered"] == 120
    sizes = [len([name for name in fields if name.startswith("cmd[")])
             for fields in calls(ready.portal, BATCH)]
    assert sorted(sizes[1:]) == [20, 50, 50]
    assert delivered(ready, ids)


def test_what_a_first_batch_achieved_counts_though_the_second_fails(ready):
    ids = accepted(ready, 60)
    batches = []

    def second_fails(method, path, fields):
        batches.append(path)
        return (500, {"error": "INTERNAL_SERVER_ERROR"}, {}) if len(batches) == 2 else None

    ready.portal.trouble = second_fails
    totals = one_pass(ready)
    assert (totals["delivered"], totals["waiting"]) == (50, 10)
    assert totals["errors"]["portal"] == "INTERNAL_SERVER_ERROR"
    assert one_pass(ready)["delivered"] == 10
    assert delivered(ready, ids)


@pytest.mark.parametrize("unknown", [[], ["1"], ["0", "1", "2"]])
def test_lists_that_php_makes_of_maps_are_understood(ready, unknown):
    ids = accepted(ready, ids=["0", "1", "2"])
    for one in unknown:  # the portal does not know it any longer: an error of this command alone
        del ready.portal.messages[one]
    totals = one_pass(ready)
    assert (totals["delivered"], totals["waiting"]) == (3 - len(unknown), 0)
    assert delivered(ready, [one for one in ids if one not in unknown])


# A CRest of one's own ----------------------------------------------------------------------------

LAUNCHER = '''
import json, sqlite3, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import app

class MyRest(app.CRest):
{methods}

app.crest = MyRest()
app.main(*sys.argv[1:])
'''
MY_STORE = '''
    def database(self):
        base = sqlite3.connect({store!r}, timeout=20)
        base.execute("CREATE TABLE IF NOT EXISTS mine (name TEXT PRIMARY KEY, value TEXT)")
        return base

    def get_setting_data(self):
        rows = self.database().execute("SELECT name, value FROM mine").fetchall()
        return {{name: json.loads(value) for name, value in rows}}

    def set_setting_data(self, settings):
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        with self.database() as base:
            base.execute("DELETE FROM mine")
            base.executemany("INSERT INTO mine VALUES (?, ?)", rows)
'''
MY_LOG = '''
    def set_log(self, kind, **data):
        with open({store!r}, "a", encoding="utf-8") as file:
            file.write(json.dumps({{"kind": kind, **data}}) + "\\n")
'''


def start_mine(world, folder, methods):
    """Start app.py with a subclass of CRest, as the tutorial tells its readers to write one."""
    store, script = folder / "mine", folder / "launcher.py"
    script.write_text(LAUNCHER.format(root=str(ROOT), methods=methods.format(store=str(store))))
    world.app = world.new_app(STATUSES_EVERY=0, RETRY_AFTER=0.1)
    world.app.script = script
    world.portal.app_url = world.app.start().url
    return store


def mine(store):
    with sqlite3.connect(store) as base:
        return {name: json.loads(value) for name, value in base.execute("SELECT * FROM mine")}


def test_a_subclass_keeps_the_settings_where_it_wants(world, tmp_path):
    store = start_mine(world, tmp_path, MY_STORE)
    assert install(world).status_code == 200
    assert mine(store)["access_token"] in world.oauth.tokens
    ids, before = accepted(world), mine(store)
    world.portal.expire_tokens()
    world.portal.rename()
    code, output = world.app.run("statuses")
    assert (code, json.loads(output)["delivered"]) == (0, 1)
    after = mine(store)
    assert after["access_token"] in world.oauth.tokens
    assert after["access_token"] != before["access_token"]
    assert after["client_endpoint"] == world.portal.endpoint
    assert after["last_pass"]["delivered"] == 1
    assert world.portal.fire("ONAPPUPDATE") == 200
    assert mine(store)["application_token"] == world.portal.application_token
    world.portal.rename()  # the token is good still: app.info alone finds the portal
    ids += accepted(world)
    assert one_pass(world)["delivered"] == 1
    assert mine(store)["client_endpoint"] == world.portal.endpoint
    assert world.portal.fire("ONAPPUNINSTALL") == 200
    assert mine(store) == {}
    assert delivered(world, ids)
    assert not (world.app.data / "settings.json").exists()


def test_a_subclass_logs_where_it_wants(world, tmp_path):
    log = start_mine(world, tmp_path, MY_LOG)
    assert install(world).status_code == 200
    ids = accepted(world)
    assert one_pass(world)["delivered"] == 1
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["handler", "send", "told", "statuses"]
    assert [line.get("message_id") for line in lines] == [*ids * 3, None]
    assert (world.app.data / "logs" / "app.log").read_text("utf-8") == ""
