"""The lesson beside each request: why it is made, how it ended, which function, what is on disk.

Everything is asked as the box's page asks it, over HTTP; the app is a process, as users start it.
"""
import json
import os
import re
import shlex
import threading
import time

import pytest
import requests
from pretend import EMPLOYEE, GOOD_KEY, Browser, Wire, World, install, until
from pretend.box import ENV, MEANS, PHONE, SWITCHES
from pretend.lesson import ANSWERED, APP, WAY, WHY, curl, source
from steps import code_of, path_of

FRAME = ("getInitData", "refreshAuth", "resizeWindow", "setTitle", "reloadWindow",
         "closeApplication", "setInstallFinish")
NEEDS_MESSAGE = ("operator-down", "no-money", "portal-503", "token-expired", "renamed")
PLAYED = {  # switch → what it must have led to on the wire: (kind, ending)
    "operator-down": ("/sms/send", "HTTP 503"), "no-money": ("/sms/send", "201"),
    "portal-503": ("batch", "QUERY_LIMIT_EXCEEDED"), "token-expired": ("oauth/token", "ok"),
    "renamed": ("app.info, renamed", "ok"), "robot": ("/handler", "robot"),
    "twice": ("/handler", "again"), "forged": ("stranger ONAPPUNINSTALL", "WRONG_EVENT"),
    "burst": ("batch", "ok"), "update": ("ONAPPUPDATE", "ok"),
    "uninstall": ("ONAPPUNINSTALL", "ok")}


def ask(world, what, **fields):
    """A question of the page's; its answer as JSON."""
    return requests.get(f"{world.portal.url}/box/{what}", fields, timeout=20).json()


def press(world, what, **fields):
    """A button of the page's; its answer as JSON."""
    return requests.post(f"{world.portal.url}/box/{what}", json=fields, timeout=60).json()


def rows(world, **wanted):
    return [one for one in ask(world, "news", after=-1)["exchanges"]
            if all(one[name] == value for name, value in wanted.items())]


def step(world, who="administrator"):
    return ask(world, "news", after=-1)["state"]["next"][who]


def send(world, text, to=PHONE):
    answer = press(world, "send", to=to, text=text, user="1")
    assert answer["status"] == 200
    return answer["id"]


def open_frame(world, user=1):
    """Open the application as this user; what its page may say to the portal's page."""
    frame = press(world, "open", user=str(user), lang="en")
    requests.post(frame["url"], frame["fields"], timeout=20, headers={"Origin": world.portal.url})
    for command in FRAME:
        press(world, "command", sid=frame["sid"], command=command)


def turn(world, name):
    """Turn a switch, send a message into the trouble, and turn it back."""
    press(world, "switch", name=name, on="1", clean="1", to=PHONE, text=name)
    if name in NEEDS_MESSAGE:
        send(world, "after " + name)
    kind, ending = PLAYED[name]
    until(lambda: rows(world, kind=kind, ending=ending), 20, f"{name}: no {kind} {ending}")
    if name in ask(world, "news", after=-1)["state"]["on"]:
        press(world, "switch", name=name, on="0")
    until(lambda: not world.app.queue(), 30, f"after {name} messages stay in the queue")


@pytest.fixture(scope="module")
def played():
    """A box in which everything has happened once; its rows are looked at below."""
    with World() as world:
        world.start_box(STATUSES_EVERY=0.4, RETRY_AFTER=0.2)
        world.smsru.delay = 0.6
        open_frame(world, EMPLOYEE)
        Browser(world, EMPLOYEE).install(api_key=GOOD_KEY)
        Browser(world).install(api_key="wrong")
        install(world)
        for number in ("11", "22"):
            send(world, "ends in " + number, f"+792550706{number}")
        Browser(world, EMPLOYEE).open("index")
        Browser(world).open("index")
        install(world)
        open_frame(world)
        for name in PLAYED:
            turn(world, name)
        world.rows = rows(world)
        yield world


# The tables ---------------------------------------------------------------------------------------

def test_every_sentence_is_there_in_both_languages_and_its_short_form_fits_a_row():
    for kind, endings in WHY.items():
        for ending, entry in endings.items():
            assert entry["outcome"] in ("good", "expected", "bad", "none"), (kind, ending)
            for lang in ("en", "ru"):
                short, why = entry[lang]
                assert 0 < len(short) <= 45, (kind, ending, lang)
                assert bool(re.search("[а-я]", short + why)) == (lang == "ru"), (kind, ending)
            assert "в коробке" not in entry["ru"][1]


def test_every_function_that_is_named_is_in_app_py_and_the_way_leads_on():
    for name in {*ANSWERED.values(), *WAY, *[following for _, following in WAY.values()]} - {""}:
        assert source(name), f"app.py has no {name}"
        assert name in WAY, f"{name} leads nowhere"


def test_a_functions_text_is_what_stands_in_app_py_decorator_and_docstring_included(box):
    found = ask(box.world, "code", name="handler")
    lines = APP.read_text("utf-8").splitlines()[found["first"] - 1:found["last"]]
    assert found["text"] == "\n".join(lines)
    assert (lines[0][:1], found["name"] in lines[1]) == ("@", True)
    assert found["doc"] and found["doc"].splitlines()[0] in found["text"]
    assert (found["script"], bool(source(found["next"]))) == ("handler.php", True)
    method = ask(box.world, "code", name="CRest.call")
    assert method["text"].startswith("    def call(self")
    for unknown in ("", "os.system", "CRest", "../app", "CRest.no_such"):
        assert ask(box.world, "code", name=unknown) == {"error": "NOT_FOUND"}


@pytest.mark.parametrize("text", ["plain", "it's; rm -rf \"$HOME\" `id`", "Ваш код\n1234"])
def test_a_request_as_curl_says_the_same_to_a_shell(text):
    one = {"method": "POST", "path": "/handler?key=…abcd", "base": "http://127.0.0.1:1",
           "fields": {"message_body": text}}
    assert shlex.split(curl(one)) == [
        "curl", "-X", "POST", "http://127.0.0.1:1/handler?key=…abcd",
        "--data-urlencode", f"message_body={text}"]
    assert curl({**one, "method": "postMessage"}) == ""


# Every exchange of a box where everything has happened --------------------------------------------

def test_every_switch_has_been_played():
    assert set(PLAYED) == set(SWITCHES)


def test_every_request_has_a_sentence_and_a_function_of_its_own(played):
    for one in played.rows:
        what = f"{one['kind']} {one['ending']} from {one['who']} to {one['to']}"
        own = {**WHY.get("to " + one["to"], {}), **WHY.get(one["kind"], {})}
        assert one["ending"] in own, f"why.json has no sentence for {what}"
        assert one["why"]["en"] == own[one["ending"]]["en"][1]
        assert one["function"] in ANSWERED.values(), f"no function for {what}"
        assert one["seconds"] >= 0 and not one["pending"]


OUTCOMES = [  # kind, ending → its colour, whatever the HTTP status is
    ("messageservice.sender.update", "ERROR_SENDER_NOT_FOUND", 400, "expected"),
    ("messageservice.sender.add", "ERROR_SENDER_ALREADY_INSTALLED", 400, "expected"),
    ("event.bind", "bound already", 400, "expected"),
    ("/sms/send", "ok", 200, "good"), ("/sms/send", "207", 200, "bad"),
    ("/sms/send", "201", 200, "bad"), ("/sms/send", "HTTP 503", 503, "bad"),
    ("/sms/status", "under way", 200, "none"), ("/sms/status", "undelivered", 200, "bad"),
    ("/sms/status", "ok", 200, "good"), ("/save", "OPERATOR_KEY", 400, "bad"),
    ("/save", "NOT_ADMIN", 403, "expected"), ("profile", "employee", 200, "expected"),
    ("/index", "HTTP 403", 403, "expected"), ("batch", "expired_token", 401, "expected"),
    ("batch", "HTTP 302", 302, "expected"), ("stranger /handler", "WRONG_KEY", 403, "good"),
    ("setInstallFinish", "ok", None, "good"), ("setInstallFinish", "refused", None, "expected"),
    ("getInitData", "ok", None, "none")]


@pytest.mark.parametrize(("kind", "ending", "status", "outcome"), OUTCOMES)
def test_the_colour_says_the_outcome_not_the_http_status(played, kind, ending, status, outcome):
    found = [one for one in played.rows if (one["kind"], one["ending"]) == (kind, ending)]
    assert found, f"{kind} never ended with {ending}"
    assert {(one["status"], one["outcome"]) for one in found} == {(status, outcome)}


def test_rows_are_in_the_order_in_which_they_began_and_belong_together(played):
    assert [one["n"] for one in played.rows] == sorted(one["n"] for one in played.rows)
    assert [one["time"] for one in played.rows] == sorted(one["time"] for one in played.rows)
    kinds = {}
    for one in played.rows:
        kinds.setdefault(one["group"].split(":")[0], set()).add((one["who"], one["kind"]))
    assert {name for _, name in kinds["message"]} == {"/handler", "/sms/send"}
    assert kinds["pass"] == {("app", "/sms/status"), ("app", "batch"), ("app", "oauth/token"),
                             ("app", "app.info, renamed")}
    assert {("app", "profile"), ("browser", "/save"), ("app", "/auth/check"),
            ("browser", "messageservice.sender.add")} <= kinds["save"]
    assert {("portal", "ONAPPUPDATE"), ("app", "messageservice.sender.add")} <= kinds["events"]
    assert ("stranger", "stranger /handler") in kinds["other"]


def test_a_messages_rows_carry_its_id_from_the_handler_to_the_portal(played):
    for message_id, message in list(played.portal.messages.items()):
        mine = [one["kind"] for one in played.rows if message_id in one["messages"]]
        assert (mine[0], mine[-1]) == ("/handler", "batch"), message
    group = next(one["group"] for one in played.rows if one["ending"] == "again")
    together = [one["kind"] for one in played.rows if one["group"] == group]
    assert sorted(together) == ["/handler", "/handler", "/sms/send"]


def test_what_is_to_be_folded_is_marked(played):
    quiet = {(one["kind"], one["ending"]) for one in played.rows if one["quiet"]}
    assert quiet == {("getInitData", "ok"), ("resizeWindow", "ok"), ("setTitle", "ok"),
                     ("/sms/status", "under way")}


def test_no_secret_is_in_what_the_page_is_told(played):
    told = json.dumps([played.rows, ask(played, "disk")], ensure_ascii=False)
    secrets = [played.portal.client_secret, played.portal.application_token, *played.oauth.tokens,
               *played.oauth.refresh]
    assert not [one for one in secrets if one in told]


# A request while it waits -------------------------------------------------------------------------

def test_a_request_is_there_while_it_waits_and_is_answered_under_the_same_number(box):
    world, go_on = box.world, threading.Event()
    install(world)
    world.smsru.trouble = lambda *_: go_on.wait(20) and None
    message_id = send(world, "slow")
    waiting, = until(lambda: rows(world, kind="/sms/send"), 10, "no row while it waits")
    assert (waiting["pending"], waiting["status"], waiting["seconds"]) == (True, None, None)
    assert (waiting["outcome"], waiting["messages"]) == ("none", [message_id])
    last = ask(world, "news", after=-1)["last"]
    go_on.set()
    news = ask(world, "news", after=last)["exchanges"]
    again, = [one for one in news if one["kind"] == "/sms/send"]
    assert (again["n"], again["pending"], again["status"]) == (waiting["n"], False, 200)
    assert (again["outcome"], again["messages"]) == ("good", [message_id])


def test_the_wire_notes_a_request_when_it_begins_and_its_answer_in_the_same_place():
    wire = Wire()
    first = wire.begin("portal", "app", "POST", "/handler")
    second = wire.begin("app", "operator", "POST", "/sms/send")
    assert [(one["n"], one["pending"]) for one in wire.exchanges] == [(1, True), (2, True)]
    wire.end(second, 200)
    wire.end(first, 0, "ConnectionError")
    assert [(one["n"], one["status"]) for one in wire.exchanges] == [(1, 0), (2, 200)]
    assert [(one["n"], one["pending"]) for one in wire.changed(0)] == [
        (1, True), (2, True), (2, False), (1, False)]
    assert wire.changed(3) == wire.exchanges[:1] == wire.since(0)[:1]


def test_an_answer_that_comes_after_the_wire_was_emptied_is_nobodys():
    wire = Wire()
    old = wire.begin("portal", "app", "POST", "/handler")
    wire.clear()
    wire.begin("portal", "app", "POST", "/handler")
    wire.end(old, 200)
    assert [(one["n"], one["pending"]) for one in wire.exchanges] == [(1, True)]


# The disk -----------------------------------------------------------------------------------------

def on_disk(world):
    """{folder: [the texts or ids in it]} as the page sees it."""
    return {one["name"]: one["files"] for one in ask(world, "disk")["folders"]}


def test_the_disk_shows_each_message_in_its_folder_and_when_it_is_due(box):
    world, go_on = box.world, threading.Event()
    install(world)
    world.smsru.delay = 3600
    first = send(world, "handed over")
    sent, = until(lambda: on_disk(world)["sent"], 10, "not in sent")
    assert (sent["id"], sent["content"]["operator_id"]) == (first, world.smsru.sent[0]["sms_id"])
    world.smsru.trouble = lambda *_: go_on.wait(20) and None
    second = send(world, "being asked")
    asked, = until(lambda: on_disk(world)["sending"], 10, "not in sending")
    assert (asked["id"], asked["content"]["text"]) == (second, "being asked")
    press(world, "switch", name="portal-503", on="1")
    go_on.set()
    send(world, "refused", "+79255070622")
    assert until(lambda: on_disk(world)["failed"], 10, "not in failed")
    path = path_of(world.app, first)
    os.utime(path, (time.time() + 100,) * 2)
    due, = [one["due"] for one in on_disk(world)["sent"] if one["id"] == first]
    assert 90 < due <= 100


def test_the_settings_are_shown_by_their_names_without_a_secret(box):
    install(box.world)
    file = box.world.app.data / "settings.json"
    saved = json.loads(file.read_text("utf-8"))
    saved["operators"]["acme"] = {"pin": "a fork's field"}
    file.write_text(json.dumps(saved), "utf-8")
    answer = ask(box.world, "disk")
    assert answer["settings"].keys() == saved.keys()
    hidden = [name for name in saved if re.search("token|key|secret", name)]
    assert hidden and all(answer["settings"][name] == "…" for name in hidden)
    operators = answer["settings"]["operators"].values()
    assert [set(fields.values()) for fields in operators] == [{"…"}, {"…"}]
    told = json.dumps(answer)
    assert not [name for name in hidden if saved[name] in told]
    assert GOOD_KEY not in told


def test_that_sending_rests_is_said_and_until_when(world):
    world.start_box(STATUSES_EVERY=0, RETRY_AFTER=60)
    install(world)
    assert ask(world, "disk")["rests"] is None
    world.smsru.down = True
    send(world, "waits")
    rests = until(lambda: ask(world, "disk")["rests"], 10, "sending goes on")
    assert (50 < rests["seconds"] <= 60, rests["why"]) == (True, "down")
    news = ask(world, "news", after=-1)["state"]
    assert (news["rests"]["why"], news["next"]["administrator"]["what"]) == ("down", "operator")
    assert 50 < news["next"]["administrator"]["seconds"] <= 60


def test_a_page_that_waits_for_news_wakes_when_the_disk_changes(world):
    world.start_box(STATUSES_EVERY=0)
    install(world)
    world.smsru.down = True
    message_id = send(world, "waits")
    until(lambda: ask(world, "news", after=-1)["state"]["rests"], 10, "sending goes on")
    seen = ask(world, "news", after=-1)
    timer = threading.Timer(0.3, os.utime, (path_of(world.app, message_id), (1, 1)))
    timer.start()
    began = time.monotonic()
    news = ask(world, "news", after=seen["last"], stamp=seen["state"]["stamp"])
    assert 0.25 < time.monotonic() - began < 3
    assert news["exchanges"] == [] and news["state"]["stamp"] != seen["state"]["stamp"]


# What to do next ----------------------------------------------------------------------------------

def test_the_next_step_is_right_at_each_point_of_the_way(world):
    world.start_box(STATUSES_EVERY=0.2, RETRY_AFTER=0.2)
    world.smsru.delay = 3600
    assert step(world) == {"step": "open", "framed": "save"}
    assert step(world, "employee") == {"step": "employee"}
    install(world)
    assert step(world) == step(world, "employee") == {"step": "send"}
    world.smsru.down = True
    send(world, "on its way")
    assert (step(world)["step"], step(world)["what"]) == ("watch", "operator")
    world.smsru.down = False
    until(lambda: step(world).get("what") == "status", 10, "it never waits for its status")
    world.smsru.delay = 0
    until(lambda: step(world) == {"step": "delivered", "status": "delivered"}, 20, "not told")
    press(world, "switch", name="uninstall", on="1", clean="1")
    assert step(world) == {"step": "uninstalled", "framed": "save"}
    assert step(world, "employee") == {"step": "employee"}
    install(world)
    assert step(world)["step"] == "delivered"
    world.app.stop()
    press(world, "send", to=PHONE, text="not taken", user="1")
    assert step(world) == {"step": "send"}


def test_starting_over_leaves_nothing_of_before(box):
    world = box.world
    install(world)
    world.smsru.delay = 3600
    send(world, "left behind")
    press(world, "switch", name="operator-down", on="1")
    address, before = world.portal.app_url, ask(world, "news", after=-1)["state"]
    assert press(world, "over")["note"] == "over"
    news = ask(world, "news", after=-1)
    assert (news["exchanges"], news["messages"]) == ([], [])
    assert (news["state"]["installed"], news["state"]["sender"]) == (False, "")
    assert news["state"]["life"] != before["life"]
    assert not news["state"]["on"]["operator-down"]
    assert step(world) == {"step": "open", "framed": "save"}
    disk = ask(world, "disk")
    assert (disk["settings"], [one["files"] for one in disk["folders"]]) == (None, [[]] * 4)
    install(world)
    assert (world.portal.app_url, len(rows(world)) > 5) == (address, True)


# Whatever the operator, whatever the fork ---------------------------------------------------------

@pytest.mark.parametrize("operator", list(MEANS))
def test_the_numbers_that_the_page_names_do_what_it_says(world, operator):
    world.start_box(SMS_OPERATOR=operator, STATUSES_EVERY=0.2, RETRY_AFTER=0.2)
    world.smsru.delay = 0.2
    install(world)
    state = ask(world, "news", after=-1)["state"]
    assert (state["operator"], bool(state["endings"])) == (operator, True)
    wanted = {one["end"]: one["means"].replace("doubt", "delivered") for one in state["endings"]}
    assert not state["phone"].endswith(tuple(wanted))
    sent = {send(world, "to " + end, "+79255070" + "6" + end): status
            for end, status in wanted.items()}
    sent[send(world, "to the default", state["phone"])] = "delivered"
    until(lambda: not world.app.queue(), 20, "messages stay in the queue")
    assert {one: world.portal.messages[one]["status"] for one in sent} == sent


def test_the_box_names_its_provider_itself_whatever_a_fork_calls_its_own(box):
    install(box.world)
    assert code_of(box.world) == ENV["SENDER_CODE"]
