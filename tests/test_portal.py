"""The emulator against the documented facts, without the app: one table per rule."""
import json
import re

import pytest
import requests
from pretend import ADMINISTRATOR, EMPLOYEE, GOOD_KEY, Browser, Party, until
from pretend.wire import Wire

SENDER = {"CODE": "fastsms", "TYPE": "SMS", "NAME": "Fast", "DESCRIPTION": "Fast SMS"}
STATUS = "messageservice.message.status.update"
ADD = "messageservice.sender.add"


class Catcher(Party):
    """Stands where the app would be: remembers what it is sent and answers 200."""

    name = "app"

    def answer(self, method, path, fields, request):
        return 200, "ok", {}


@pytest.fixture
def catcher(world):
    """A portal with the app "installed", its sender and its three events bound to a Catcher."""
    party = Catcher().start()
    world.portal.app_url, world.portal.installed = party.url + "/", True
    world.portal.senders["fastsms"] = {**SENDER, "HANDLER": party.url + "/handler?key=planted-key"}
    world.portal.bindings = [{"event": event, "handler": party.url + "/install"}
                             for event in ("ONAPPUPDATE", "ONAPPUNINSTALL")]
    yield party
    party.stop()


def post(url, **fields):
    return requests.post(url, data=fields, timeout=10, allow_redirects=False)


def token(world, user=ADMINISTRATOR):
    return world.oauth.issue(world.portal, user)["access_token"]


def rest(world, method, user=ADMINISTRATOR, **fields):
    return post(world.portal.endpoint + method, auth=token(world, user), **fields)


def add(world, **changes):
    fields = {**SENDER, "HANDLER": world.smsru.url + "/handler", **changes}
    return rest(world, ADD, **fields)


def last(party):
    return party.requests[-1]


# REST: errors, tokens, senders, events, batch, limits -----------------------------------------

@pytest.mark.parametrize(("method", "user", "fields", "status", "code"), [
    ("no.such.method", ADMINISTRATOR, {}, 404, "ERROR_METHOD_NOT_FOUND"),
    (ADD, EMPLOYEE, {}, 403, "ACCESS_DENIED"),
    ("messageservice.sender.delete", EMPLOYEE, {"CODE": "fastsms"}, 403, "ACCESS_DENIED"),
    ("event.bind", EMPLOYEE, {}, 403, "ACCESS_DENIED"),
    (ADD, ADMINISTRATOR, {}, 400, "ERROR_SENDER_VALIDATION_FAILURE"),
    ("messageservice.sender.update", ADMINISTRATOR, {"CODE": "x"}, 400, "ERROR_SENDER_NOT_FOUND"),
    ("messageservice.sender.delete", ADMINISTRATOR, {"CODE": "x"}, 400, "ERROR_SENDER_NOT_FOUND"),
    (STATUS, ADMINISTRATOR, {"CODE": "fastsms", "MESSAGE_ID": "nobody", "STATUS": "delivered"},
     400, "ERROR_MESSAGE_NOT_FOUND"),
    (STATUS, ADMINISTRATOR, {"CODE": "fastsms", "MESSAGE_ID": "one", "STATUS": "DELIVERED"},
     400, "ERROR_MESSAGE_STATUS_INCORRECT"),
    (STATUS, ADMINISTRATOR, {"CODE": "other", "MESSAGE_ID": "one", "STATUS": "sent"},
     400, "ERROR_MESSAGE_NOT_FOUND"),
    (STATUS, EMPLOYEE, {"CODE": "fastsms", "MESSAGE_ID": "one", "STATUS": "sent"},
     403, "ACCESS_DENIED"),
])
def test_errors_have_documented_names_and_statuses(world, method, user, fields, status, code):
    world.portal.send_message("+79990000000", "hello", message_id="one")
    answer = rest(world, method, user, **fields)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["error_description"]


def test_tokens_expire_are_unknown_or_absent(world):
    url, good = world.portal.endpoint + "profile", token(world)
    assert post(url, auth=good).json()["result"]["ADMIN"] is True
    assert rest(world, "profile", EMPLOYEE).json()["result"]["ADMIN"] is False
    world.portal.expire_tokens()
    for fields, code in [({"auth": good}, "expired_token"), ({"auth": "x" * 70}, "invalid_token"),
                         ({}, "NO_AUTH_FOUND")]:
        answer = post(url, **fields)
        assert (answer.status_code, answer.json()["error"]) == (401, code)


@pytest.mark.parametrize("how", ["form", "json", "suffix"])
def test_rest_takes_forms_and_json(world, how):
    url, auth = world.portal.endpoint + "profile", {"auth": token(world)}
    answer = (requests.post(url, json=auth, timeout=5) if how == "json" else
              post(url + (".json" if how == "suffix" else ""), **auth))
    assert answer.json()["result"]["ID"] == "1"
    assert answer.json()["time"]["operating_reset_at"] > 0


def test_a_scope_or_a_user_can_be_missing(world):
    world.portal.users[EMPLOYEE]["active"] = False
    assert rest(world, "profile", EMPLOYEE).json()["error"] == "user_access_error"
    world.portal.scope = "crm"
    answer = rest(world, "messageservice.sender.list")
    assert (answer.status_code, answer.json()["error"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(("changes", "code"), [
    ({"CODE": "no spaces"}, "ERROR_SENDER_VALIDATION_FAILURE"),
    ({"TYPE": "FAX"}, "ERROR_SENDER_VALIDATION_FAILURE"),
    ({"NAME": ""}, "ERROR_SENDER_VALIDATION_FAILURE"),
    ({"HANDLER": ""}, "ERROR_SENDER_VALIDATION_FAILURE"),
    ({"HANDLER": "ftp://a.example/h"}, "ERROR_UNSUPPORTED_PROTOCOL"),
    ({"HANDLER": "http://localhost/h"}, "ERROR_WRONG_HANDLER_URL"),
])
def test_a_sender_is_checked(world, changes, code):
    answer = add(world, **changes)
    assert (answer.status_code, answer.json()["error"]) == (400, code)
    assert not world.portal.senders


def test_a_sender_is_added_once_updated_listed_deleted(world):
    assert add(world).json()["result"] is True
    assert add(world).json()["error"] == "ERROR_SENDER_ALREADY_INSTALLED"
    assert rest(world, "messageservice.sender.list").json()["result"] == ["fastsms"]
    assert rest(world, "messageservice.sender.update", CODE="fastsms", NAME="New").ok
    assert world.portal.senders["fastsms"]["NAME"] == "New"
    assert rest(world, "messageservice.sender.delete", CODE="fastsms").json()["result"] is True


def test_a_sender_may_be_named_in_two_languages(world):
    fields = {"NAME[ru]": "Быстрые", "NAME[en]": "Fast", "NAME": None}
    assert add(world, **fields).json()["result"] is True
    assert world.portal.senders["fastsms"]["NAME[ru]"] == "Быстрые"
    assert add(world, CODE="mixed", **{"DESCRIPTION[ru]": "Быстро"}).json()["result"] is True
    assert "DESCRIPTION[ru]" not in world.portal.senders["mixed"], "lost beside a NAME of one text"


def test_the_status_call_takes_names_in_either_case(world):
    world.portal.send_message("+79990000000", "hello", message_id="one", author=EMPLOYEE)
    rest(world, STATUS, CODE="fastsms", message_id="one", status="queued")
    rest(world, STATUS, EMPLOYEE, CODE="fastsms", MESSAGE_ID="one", STATUS="delivered")
    assert world.portal.messages["one"]["history"] == ["sent", "queued", "delivered"]


def test_an_event_is_bound_once(world):
    bind = {"event": "OnAppUpdate", "handler": "https://app.example/install"}
    assert rest(world, "event.bind", **bind).json()["result"] is True
    answer = rest(world, "event.bind", **bind)
    assert answer.status_code == 400
    assert "Handler already binded" in answer.json()["error_description"]
    bound = rest(world, "event.get").json()["result"]
    assert [one["event"] for one in bound] == ["ONAPPUPDATE"]
    assert rest(world, "event.unbind", event="ONAPPUPDATE").status_code == 400  # whose?
    assert rest(world, "event.unbind", **bind).json()["result"] == {"count": 1}


@pytest.mark.parametrize(("commands", "result", "errors"), [
    ({"a": "profile"}, {"a": "1"}, []),
    ({"0": "profile", "1": "profile?x=1"}, ["1", "1"], []),
    ({"1": "profile"}, {"1": "1"}, []),
    ({"0": "no.such"}, [], ["ERROR_METHOD_NOT_FOUND"]),
    ({"a": "profile", "b": "no.such"}, {"a": "1"}, {"b": "ERROR_METHOD_NOT_FOUND"}),
    ({"a": "batch"}, [], {"a": "ERROR_BATCH_METHOD_NOT_ALLOWED"}),
])
def test_a_batch_shows_how_php_encodes_maps(world, commands, result, errors):
    answer = rest(world, "batch", **{f"cmd[{key}]": text for key, text in commands.items()})

    def short(some, name):
        return ([one[name] for one in some] if isinstance(some, list) else
                {key: one[name] for key, one in some.items()})
    body = answer.json()["result"]
    assert short(body["result"], "ID") == result
    assert short(body["result_error"], "error") == errors
    assert body["result_total"] == body["result_next"] == []


def test_a_batch_comes_as_json_as_well(world):
    body = {"auth": token(world), "halt": 0, "cmd": {"a": "profile?x=1"}}
    answer = requests.post(world.portal.endpoint + "batch", json=body, timeout=5).json()
    assert answer["result"]["result"]["a"]["ID"] == "1"


def test_a_batch_holds_fifty_and_can_halt(world):
    many = {f"cmd[{n}]": "profile" for n in range(51)}
    assert rest(world, "batch", **many).json()["error"] == "ERROR_BATCH_LENGTH_EXCEEDED"
    many.pop("cmd[50]")
    assert len(rest(world, "batch", **many).json()["result"]["result"]) == 50
    two = {"cmd[a]": "no.such", "cmd[b]": "profile"}
    assert rest(world, "batch", halt=0, **two).json()["result"]["result"].keys() == {"b"}
    assert rest(world, "batch", halt=1, **two).json()["result"]["result"] == []


def test_the_bucket_holds_fifty_and_leaks_two_a_second(world):
    now = [1000.0]
    world.oauth.clock, world.portal.limit = lambda: now[0], True
    auth, session = token(world), requests.Session()

    def burst(count):
        return [session.post(world.portal.endpoint + "profile", data={"auth": auth},
                             timeout=5).status_code for _ in range(count)]
    assert burst(52) == [200] * 50 + [503] * 2
    now[0] += 1
    assert burst(3) == [200, 200, 503]
    body = post(world.portal.endpoint + "profile", auth=auth).json()
    assert body["error"] == "QUERY_LIMIT_EXCEEDED"


def test_a_renamed_portal_redirects_posts(world):
    old = world.portal.endpoint
    world.portal.rename()
    answer = post(old + "profile", auth=token(world))
    assert answer.status_code == 302
    assert answer.headers["Location"] == world.portal.endpoint + "profile" != old + "profile"
    assert post(answer.headers["Location"], auth=token(world)).json()["result"]["ID"] == "1"
    info = post(world.oauth.url + "/rest/app.info", auth=token(world)).json()["result"]
    assert info["install"]["client_endpoint"] == world.portal.endpoint


def test_browsers_are_let_in(world):
    url = world.portal.endpoint + "profile.json"
    answer = requests.options(url, timeout=5)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
    answer = requests.post(url, data={"auth": "x"}, headers={"Origin": "http://a.b"}, timeout=5)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert world.wire.exchanges[-1]["who"] == "browser"


# OAuth ----------------------------------------------------------------------------------------

def renew(world, **changes):
    return post(world.oauth.url + "/oauth/token/", **{
        "grant_type": "refresh_token", "client_id": world.portal.client_id,
        "client_secret": world.portal.client_secret, **changes})


def test_a_refresh_token_is_good_once(world):
    first = world.oauth.issue(world.portal, ADMINISTRATOR)
    second = renew(world, refresh_token=first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["member_id"] == world.portal.member_id
    assert second["client_endpoint"] == world.portal.endpoint
    assert second["domain"] == world.oauth.url.split("//")[1] != world.portal.domain
    spent = renew(world, refresh_token=first["refresh_token"])
    assert (spent.status_code, spent.json()["error"]) == (400, "invalid_grant")
    assert renew(world, refresh_token=second["refresh_token"]).status_code == 200


@pytest.mark.parametrize(("changes", "code"), [
    ({"client_secret": "wrong"}, "invalid_client"), ({"client_id": "wrong"}, "invalid_client"),
    ({"grant_type": "password"}, "invalid_request"), ({}, "invalid_grant"),
])
def test_a_wrong_renewal_spends_nothing(world, changes, code):
    good = world.oauth.issue(world.portal, ADMINISTRATOR)["refresh_token"]
    answer = renew(world, refresh_token=good if changes else "unknown", **changes)
    assert answer.json()["error"] == code
    assert answer.status_code in (400, 401)
    assert renew(world, refresh_token=good).status_code == 200


def test_app_info_proves_whose_a_token_is(world):
    url = world.oauth.url + "/rest/app.info"
    info = requests.get(url, params={"auth": token(world, EMPLOYEE)}, timeout=5).json()["result"]
    assert (info["client_id"], info["user_id"]) == (world.portal.client_id, EMPLOYEE)
    assert info["install"]["member_id"] == world.portal.member_id
    foreign = world.oauth.issue(world.portal, ADMINISTRATOR, client_id="local.other")
    answer = post(url, auth=foreign["access_token"]).json()
    assert answer["result"]["client_id"] == "local.other"
    other = world.another_portal()
    auth = world.oauth.issue(other, ADMINISTRATOR)["access_token"]
    assert post(url, auth=auth).json()["result"]["install"]["member_id"] == other.member_id
    assert post(world.portal.endpoint + "profile", auth=auth).json()["error"] == "invalid_token"
    world.portal.expire_tokens()
    answer = post(url, auth=foreign["access_token"])
    assert (answer.status_code, answer.json()["error"]) == (401, "expired_token")


# What the portal sends ------------------------------------------------------------------------

def test_the_frame_posts_its_fields(world, catcher):
    assert world.portal.show_frame(EMPLOYEE, "index", "en").status_code == 200
    path, fields = last(catcher)
    assert path == "/index"
    assert fields.keys() == {
        "DOMAIN", "PROTOCOL", "LANG", "APP_SID", "AUTH_ID", "AUTH_EXPIRES", "REFRESH_ID",
        "APPLICATION_TOKEN", "APPLICATION_SCOPE", "SERVER_ENDPOINT", "member_id", "status",
        "PLACEMENT", "PLACEMENT_OPTIONS"}
    assert (fields["LANG"], fields["PROTOCOL"]) == ("en", "0")
    assert world.oauth.owner(fields["AUTH_ID"])["user"] == EMPLOYEE


def test_a_message_from_a_card(world, catcher):
    message_id, status = world.portal.send_message("+79990000000", "Ваш код: 1234")
    path, fields = last(catcher)
    assert (status, path, fields["key"]) == (200, "/handler", "planted-key")
    assert re.fullmatch(r"[0-9a-f]{32}", message_id)
    for name, value in {
            "module_id": "crm", "bindings[0][OWNER_TYPE_ID]": "3", "bindings[0][OWNER_ID]": "123",
            "properties[phone_number]": "+79990000000", "properties[message_text]": "Ваш код: 1234",
            "type": "SMS", "code": "fastsms", "message_id": message_id,
            "message_to": "+79990000000", "message_body": "Ваш код: 1234",
            "auth[member_id]": world.portal.member_id, "auth[user_id]": "1",
            "auth[application_token]": world.portal.application_token}.items():
        assert fields[name] == value
    assert world.oauth.owner(fields["auth[access_token]"])["user"] == ADMINISTRATOR
    assert not [name for name in fields if "refresh" in name]


def test_a_message_from_a_robot_has_no_auth(world, catcher):
    world.portal.send_message("+79990000000", "hi", robot=True)
    fields = last(catcher)[1]
    assert fields["module_id"] == "bizproc"
    assert {"workflow_id", "document_id[0]", "document_id[2]", "document_type[2]"} <= fields.keys()
    assert not [name for name in fields if name.startswith(("auth", "bindings"))]


def test_the_portal_never_calls_twice(world, catcher):
    catcher.trouble = lambda *request: (500, "no", {})
    message_id, status = world.portal.send_message("+79990000000", "hi")
    assert (status, len(catcher.requests)) == (500, 1)
    assert world.portal.messages[message_id]["status"] == "sent"
    catcher.stop()
    assert world.portal.send_message("+79990000000", "hi")[1] == 0
    world.portal.installed = False
    assert world.portal.send_message("+79990000000", "hi")[1] is None


def test_many_messages_arrive_at_once(world, catcher):
    answers = world.portal.send_many([("+79990000000", f"text {n}") for n in range(100)])
    assert [status for _, status in answers] == [200] * 100
    assert len({message_id for message_id, _ in answers}) == 100
    assert len(catcher.requests) == 100


def test_an_install_event_brings_full_auth(world, catcher):
    world.portal.installed = False
    assert world.portal.fire("ONAPPINSTALL") == 200
    path, fields = last(catcher)
    assert (path, fields["event"]) == ("/install", "ONAPPINSTALL")
    assert {f"auth[{name}]" for name in (
        "access_token", "refresh_token", "expires_in", "client_endpoint", "member_id",
        "application_token")} <= fields.keys()
    assert world.portal.installed


def test_an_update_event_comes_with_a_new_application_token(world, catcher):
    before = world.portal.application_token
    assert world.portal.fire("ONAPPUPDATE") == 200
    fields = last(catcher)[1]
    assert (fields["data[VERSION]"], fields["data[PREVIOUS_VERSION]"]) == ("2", "1")
    assert fields["auth[application_token]"] == world.portal.application_token != before
    assert (world.portal.senders, world.portal.bindings) == ({}, [])
    assert world.portal.fire("ONAPPUPDATE") is None


def test_an_uninstall_event_comes_when_the_tokens_are_dead(world, catcher):
    auth = token(world)
    assert world.portal.fire("ONAPPUNINSTALL", CLEAN=0) == 200
    fields = last(catcher)[1]
    assert fields["data[CLEAN]"] == "0"
    assert fields["auth[application_token]"] == world.portal.application_token
    assert "auth[access_token]" not in fields
    answer = post(world.portal.endpoint + "profile", auth=auth)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")


# SMS.ru ---------------------------------------------------------------------------------------

def sms(world, path, key=GOOD_KEY, **fields):
    return post(world.smsru.url + path, api_id=key, json=1, **fields)


def test_the_operator_wants_a_good_key_in_a_post(world):
    url = world.smsru.url + "/auth/check"
    assert sms(world, "/auth/check").json() == {"status": "OK", "status_code": 100}
    assert sms(world, "/my/balance").json()["balance"] == 1000.0
    in_query = {"api_id": GOOD_KEY, "json": 1}
    for answer in (sms(world, "/auth/check", "wrong"), requests.get(url, in_query, timeout=5),
                   requests.post(url, params=in_query, data={"json": 1}, timeout=5)):
        assert (answer.json()["status"], answer.json()["status_code"]) == ("ERROR", 200)
    assert post(url, api_id=GOOD_KEY).text == "100\n"


def test_the_operator_takes_both_forms_of_sending(world):
    world.smsru.codes["74993221627"] = 207
    one = sms(world, "/sms/send", to="79255070602", msg="Привет").json()
    assert one["sms"]["79255070602"]["sms_id"] == "202647-1000001"
    two = sms(world, "/sms/send", **{"to[79255070603]": "a", "to[74993221627]": "b"}).json()
    assert (two["status"], two["sms"]["74993221627"]["status_code"]) == ("OK", 207)
    assert [(m["to"], m["msg"], m["test"]) for m in world.smsru.sent] == [
        ("79255070602", "Привет", False), ("79255070603", "a", False)]
    assert two["balance"] == world.smsru.balance == 999.0


@pytest.mark.parametrize(("number", "text", "switches", "code"), [
    ("+7 925 507", "text", {}, 202), ("79255070602", " ", {}, 203),
    ("79255070602", "text", {"balance": 0}, 201),
    ("79255070602", "again", {"check_repeats": True}, 231),
    ("79255070602", "text", {"codes": {"79255070602": 230}}, 230),
])
def test_an_entry_is_refused_inside_an_ok_answer(world, number, text, switches, code):
    sms(world, "/sms/send", to="79255070602", msg="again")
    for name, value in switches.items():
        setattr(world.smsru, name, value)
    answer = sms(world, "/sms/send", **{f"to[{number}]": text}).json()
    entry = answer["sms"][number]
    assert (answer["status"], entry["status"], entry["status_code"]) == ("OK", "ERROR", code)
    assert ("sms_id" in entry, len(world.smsru.sent)) == (False, 1)


def test_whole_requests_are_refused(world):
    world.smsru.refuse = 301
    assert sms(world, "/sms/send", to="79255070602", msg="x").json() == {
        "status": "ERROR", "status_code": 301}
    world.smsru.refuse = None
    many = {f"to[7925507{n:04}]": "x" for n in range(101)}
    assert sms(world, "/sms/send", **many).json()["status"] == "ERROR"
    many.popitem()
    assert len(sms(world, "/sms/send", **many).json()["sms"]) == 100
    ids = ",".join(f"1-{n}" for n in range(101))
    assert sms(world, "/sms/status", sms_id=ids).json()["status"] == "ERROR"
    world.smsru.down = True
    answer = sms(world, "/auth/check")
    assert (answer.status_code, answer.text[:6]) == (503, "<html>")


def test_a_test_message_is_only_imitated(world):
    answer = sms(world, "/sms/send", test=1, **{"to[79255070602]": "a", "to[79255070603]": "b"})
    ids = {entry["sms_id"] for entry in answer.json()["sms"].values()}
    assert (len(ids), world.smsru.balance) == (1, 1000.0)
    assert [one["test"] for one in world.smsru.sent] == [True, True]


def test_delivery_takes_its_time(world):
    now = [1000.0]
    world.smsru.clock = lambda: now[0]
    world.smsru.delivery["79255070603"] = 104
    sms(world, "/sms/send", **{"to[79255070602]": "a", "to[79255070603]": "b"})
    seen = []
    for _ in range(3):
        answer = sms(world, "/sms/status", sms_id="202647-1000001,202647-1000002,9-9").json()
        seen.append([entry["status_code"] for entry in answer["sms"].values()])
        now[0] += 0.6
    assert seen == [[100, 100, -1], [102, 102, -1], [103, 104, -1]]
    assert [entry["status"] for entry in answer["sms"].values()] == ["OK", "OK", "ERROR"]


# The wire and the servers ---------------------------------------------------------------------

@pytest.mark.parametrize(("name", "value", "kept"), [
    ("AUTH_ID", "0123456789abcd", "…abcd"), ("auth[access_token]", "0123456789abcd", "…abcd"),
    ("api_key", "short", "…"), ("HANDLER", "https://a.b/h?x=1&key=0123456789", "…6789"),
    ("cmd[a]", "event.bind?handler=https%3A%2F%2Fa.b%2Fh%3Fkey%3D0123456789&event=X", "…6789&"),
    ("message_body", "met before: planted-secret", "…cret"),
])
def test_secrets_are_masked(name, value, kept):
    wire = Wire()
    wire.add("browser", "app", "POST", "/x", {"client_secret": "planted-secret"})
    one = wire.add("app", "portal", "POST", "/rest/x?auth=0123456789abcd", {name: value},
                   answer=json.dumps({"result": {"refresh_token": "9876543210wxyz"}}))
    assert kept in one["fields"][name]
    printed = repr(wire.changed(0)) + repr(wire.since(0))
    assert not [secret for secret in ("012345", "planted", "98765", "short") if secret in printed]


def test_the_wire_tells_who_spoke_to_whom_and_why(world, catcher):
    Browser(world).open("install")
    world.portal.send_message("+79990000000", "hi")
    rest(world, ADD)
    sms(world, "/sms/status")
    renew(world)
    assert [(one["n"], one["who"], one["to"], one["script"]) for one in world.wire.since(0)] == [
        (1, "browser", "app", "install"), (2, "portal", "app", "handler"),
        (3, "app", "portal", "install"), (4, "app", "operator", "statuses"),
        (5, "app", "oauth", "crest")]


def test_a_stopped_party_is_unreachable_and_comes_back(world):
    url, session = world.smsru.url + "/auth/check", requests.Session()
    assert session.post(url, timeout=5).status_code == 200
    world.smsru.stop()
    with pytest.raises(requests.ConnectionError):
        session.post(url, timeout=5)
    world.smsru.start()
    assert session.post(url, timeout=5).status_code == 200


def test_trouble_answers_instead(world):
    world.portal.trouble = lambda method, path, fields: (429, {"error": path}, {"X-A": "b"})
    answer = rest(world, "profile")
    assert (answer.status_code, answer.headers["X-A"]) == (429, "b")
    assert answer.json() == {"error": "/rest/profile"}
    world.portal.trouble = None
    assert until(lambda: rest(world, "profile").ok)
    with pytest.raises(AssertionError, match="never"):
        until(lambda: False, 0.01)
