"""Nobody in: forged frames and events, hostile addresses, headers, limits, files, leaks."""
import json
import os
import socket
import stat
from urllib.parse import urlencode

import pytest
import requests
from pretend import ADMINISTRATOR, EMPLOYEE, GOOD_KEY, Browser, World, install, until
from pretend.wire import Party
from steps import (
    code_of,
    folder_of,
    handler_url,
    make_due,
    one_pass,
    outcomes,
    send,
    settled,
    stored,
    tried,
)

FRAME = ("AUTH_ID", "REFRESH_ID", "APPLICATION_TOKEN")
EVENT = ("auth[access_token]", "auth[refresh_token]", "auth[application_token]")


class Catcher(Party):
    """A stranger's server, also usable as a proxy: nothing of ours may ever arrive here."""

    name = "stranger"

    def answer(self, method, path, fields, request):
        return 200, {"result": {"ID": "1", "ADMIN": True}}, {}


@pytest.fixture(scope="module")
def home():
    """One installed app for all tests that must change nothing."""
    with World() as world:
        world.start_app(RETRY_AFTER=1, STATUSES_EVERY=0)
        assert install(world).status_code == 200
        world.handler, world.code = handler_url(world), code_of(world)
        world.key = world.handler.partition("key=")[2]
        world.elsewhere = world.another_portal()
        yield world


@pytest.fixture
def catcher():
    party = Catcher().start()
    yield party
    party.stop()


def state(world):
    """Everything that a stranger might want to change."""
    return (saved(world), dict(world.portal.senders),
            list(world.portal.bindings), world.app.queue())


def saved(world):
    return (world.app.data / "settings.json").read_text("utf-8")


def post(url, fields=None, **more):
    return requests.post(url, data=fields, timeout=10, allow_redirects=False, **more)


# Forged tokens ---------------------------------------------------------------------------------

def forged(world, kind):
    """A token that must open nothing: (access token, refresh token)."""
    portal, user, client_id = world.portal, ADMINISTRATOR, None
    if kind == "of another application":
        client_id = "local.0000.stranger"
    elif kind == "of an employee":
        user = EMPLOYEE
    elif kind == "of another portal":
        portal = world.elsewhere
    tokens = world.oauth.issue(portal, user, client_id)
    if kind == "expired":
        world.oauth.tokens[tokens["access_token"]]["expires"] = 0
    made_up = {"absent": "", "made up": "a" * 70, "no ASCII": "ключ"}
    return made_up.get(kind, tokens["access_token"]), tokens["refresh_token"]


KINDS = [("absent", "WRONG_TOKEN"), ("made up", "WRONG_TOKEN"), ("no ASCII", "WRONG_TOKEN"),
         ("expired", "WRONG_TOKEN"), ("of another application", "WRONG_TOKEN"),
         ("of an employee", "NOT_ADMIN"), ("of another portal", "OTHER_PORTAL")]


@pytest.mark.parametrize(("kind", "error"), KINDS)
@pytest.mark.parametrize("path", ["save", "ONAPPINSTALL", "ONAPPUPDATE"])
def test_a_forged_token_is_refused_and_changes_nothing(home, path, kind, error):
    access, refresh = forged(home, kind)
    before, names = state(home), FRAME if path == "save" else EVENT
    fields = {**dict(zip(names, (access, refresh, "forged"))), "api_key": GOOD_KEY,
              "member_id": home.portal.member_id, "DOMAIN": home.portal.domain,
              "auth[client_endpoint]": home.portal.endpoint}
    if path != "save":
        fields["event"] = path
    answer = post(home.app.url + ("save" if path == "save" else "install"), fields)
    assert (answer.status_code, answer.json()["error"]) == (403, error)
    assert answer.json()["error_description"]
    assert state(home) == before


def test_the_tokens_of_a_message_are_never_kept(home):
    before = saved(home)
    fields = home.portal.message_fields("+79990000000", "text", "tokens", home.code,
                                        author=EMPLOYEE)
    assert post(home.handler, {**fields, "auth[refresh_token]": "r" * 70}).status_code == 200
    settled(home.app, "tokens")
    assert saved(home) == before


# The secret in our own URLs --------------------------------------------------------------------

WRONG_KEYS = ["", "key=", "key=wrong", "key=%D0%BA%D0%BB%D1%8E%D1%87", "key=%FF%00", "Key={key}",
              "key={key}a", "key=wrong&key=", "key[]={key}"]


@pytest.mark.parametrize("path", ["handler", "statuses", "checkserver"])
def test_only_the_right_key_opens(home, path):
    method = "POST" if path == "handler" else "GET"
    before = state(home)
    for query in WRONG_KEYS:
        url = f"{home.app.url}{path}?{query.format(key=home.key)}"
        answer = requests.request(method, url, timeout=10,
                                  data={"code": home.code, "message_id": "forged"})
        assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_KEY"), query
    assert state(home) == before


@pytest.mark.parametrize("token", [None, "", "wrong", "токен"])
def test_the_handler_believes_its_key_alone(home, token):
    """Whoever forges leaves application_token out, and a changed one would lose a message."""
    fields = {"code": home.code, "message_id": f"token-{token}".encode().hex(), "message_to": PHONE,
              "message_body": f"with the token {token}", "auth[application_token]": token}
    before = saved(home)
    assert post(home.handler, fields).status_code == 200
    settled(home.app, fields["message_id"])
    assert saved(home) == before


def test_before_the_installation_nothing_is_open(world, app):
    for method, path in (("POST", "handler"), ("GET", "statuses")):
        for query in ("", "?key=", "?key=None"):
            answer = requests.request(method, app.url + path + query, timeout=10)
            assert (answer.status_code, answer.json()["error"]) == (503, "NOT_INSTALLED")
    assert app.queue() == []


# Addresses from a request ----------------------------------------------------------------------

def hostile(catcher):
    """Every field and header that names an address, pointing at a stranger."""
    place, url = catcher.url.partition("//")[2], catcher.url + "/rest/"
    return ({"DOMAIN": place, "SERVER_ENDPOINT": url, "CLIENT_ENDPOINT": url, "PROTOCOL": "0",
             "auth[domain]": place, "auth[server_endpoint]": url, "auth[client_endpoint]": url},
            {"X-Forwarded-Host": place, "X-Forwarded-Server": place, "Origin": catcher.url,
             "X-Forwarded-Proto": "https", "Forwarded": f"host={place}", "Referer": url})


def test_no_address_of_a_request_is_used(world, app, catcher):
    fields, headers = hostile(catcher)
    url, frame = world.portal.open_frame(ADMINISTRATOR, "install")
    auth = world.portal.event_auth()
    event = {f"auth[{name}]": value for name, value in auth.items()}
    place = app.url + "save?" + urlencode({"DOMAIN": fields["DOMAIN"]})
    answers = [post(url, {**frame, **fields}, headers=headers),
               post(place, {**frame, **fields, "api_key": GOOD_KEY}, headers=headers),
               post(app.url + "index", {**frame, **fields}, headers=headers)]
    answers += [post(app.url + "install", {**event, **fields, "event": name}, headers=headers)
                for name in ("ONAPPINSTALL", "ONAPPUPDATE")]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert list(catcher.requests) == []
    assert answers[1].json()["sender"]["HANDLER"].startswith(app.url)
    assert {one["handler"] for one in world.portal.bindings} == {app.url + "install"}
    assert str(catcher.port) not in saved(world)


def away(catcher, status):
    """Trouble: whatever is asked for is at a stranger's now."""
    return lambda method, path, fields: (status, "", {"Location": catcher.url + path})


REDIRECTS = [301, 302, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
def test_oauth_server_and_operator_are_never_followed_elsewhere(world, catcher, status):
    app, browser = world.start_app(RETRY_AFTER=0.1, STATUSES_EVERY=0), Browser(world)
    browser.open("install")
    world.oauth.trouble = away(catcher, status)
    assert browser.save(api_key=GOOD_KEY).json()["error"] == "OAUTH_SERVER"
    world.oauth.trouble, world.smsru.trouble = None, away(catcher, status)
    assert browser.save(api_key=GOOD_KEY).json()["error"] == "OPERATOR_DOWN"  # /auth/check
    world.smsru.trouble = None
    assert install(world).status_code == 200
    world.smsru.trouble = away(catcher, status)
    message_id = send(world, "text")
    tried(app, message_id)
    assert outcomes(app, message_id) == ["in doubt"]
    world.smsru.trouble = None
    make_due(app)
    one_pass(world)  # it is sent
    settled(app, message_id)
    world.smsru.trouble = away(catcher, status)
    assert one_pass(world)["errors"]["operator"]  # /sms/status
    world.smsru.trouble, world.smsru.delay, world.oauth.trouble = None, 0, away(catcher, status)
    world.portal.expire_tokens()
    make_due(app)
    assert one_pass(world)["errors"]["portal"]
    assert [path for path, _ in world.oauth.requests][-1] == "/oauth/token/"
    assert list(catcher.requests) == []


LOCATIONS = ["{url}/rest/batch.json", "//{place}/rest/batch.json", "http://{place}@{place}/",
             "/elsewhere", ""]


@pytest.mark.parametrize(("status", "location"), [
    *[(302, location) for location in LOCATIONS], (301, LOCATIONS[0]), (307, LOCATIONS[0]),
    (308, LOCATIONS[0])])
def test_no_location_of_a_portal_is_followed(home, catcher, status, location):
    message_id = send(home, "text")
    settled(home.app, message_id)
    place = catcher.url.partition("//")[2]
    headers = {"Location": location.format(url=catcher.url, place=place)} if location else {}
    home.smsru.delay, home.portal.trouble = 0, lambda *request: (status, "", headers)
    home.portal.requests.clear()
    try:
        make_due(home.app)
        assert one_pass(home)["errors"]["portal"] == f"HTTP_{status}"
    finally:
        home.portal.trouble = None
    assert len(home.portal.requests) == (2 if status == 302 else 1)
    assert list(catcher.requests) == []
    assert json.loads(saved(home))["client_endpoint"] == home.portal.endpoint
    assert folder_of(home.app, message_id) == "sent", "it waits for the portal"


@pytest.mark.parametrize(("variable", "error"), [
    ("OAUTH_URL", "OAUTH_SERVER"), ("SMSRU_URL", "OPERATOR_DOWN")])
def test_http_is_for_loopback_addresses_only(world, catcher, variable, error):
    proxy = {"HTTP_PROXY": catcher.url, "http_proxy": catcher.url, "NO_PROXY": "127.0.0.1"}
    world.start_app(STATUSES_EVERY=0, **{variable: "http://plain.example.com"}, **proxy)
    browser = Browser(world)
    browser.open("install")
    answer = browser.save(api_key=GOOD_KEY)
    assert (answer.status_code, answer.json()["error"]) == (503, error)
    assert list(catcher.requests) == []


# Headers and pages -----------------------------------------------------------------------------

@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "", 200), ("GET", "index", 200), ("GET", "install", 200), ("POST", "install", 200),
    ("POST", "save", 403), ("POST", "handler", 403), ("GET", "statuses", 403),
    ("GET", "checkserver", 403), ("GET", "save", 405), ("GET", "handler", 405),
    ("GET", "nothing/here", 404), ("POST", "statuses", 405)])
def test_every_answer_is_neither_stored_nor_referred_to(home, method, path, status):
    answer = requests.request(method, home.app.url + path, timeout=10)
    assert answer.status_code == status
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    if status != 200:
        assert answer.headers["Content-Type"].startswith("application/json")
        assert set(answer.json()) == {"error", "error_description"}
        assert answer.json()["error"] and answer.json()["error_description"]


@pytest.mark.parametrize(("domain", "protocol", "ancestors"), [
    ("acme.bitrix24.ru", "1", "https://acme.bitrix24.ru"),
    ("acme.bitrix24.ru", "0", "http://acme.bitrix24.ru"),
    ("portal.acme.ru:8443", "1", "https://portal.acme.ru:8443"),
    ("acme.ru; script-src *", "1", "'none'"), ("acme.ru evil.ru", "1", "'none'"),
    ("*", "1", "'none'"), ("*.ru", "1", "'none'"), ("acme.ru\r\nX-Evil: 1", "1", "'none'"),
    ("acme.ru\n", "1", "'none'"), ("acme.ru/path", "1", "'none'"), ("", "1", "'none'")])
def test_a_page_may_be_framed_by_its_portal_only(home, domain, protocol, ancestors):
    for page in ("install", "index"):
        query = urlencode({"DOMAIN": domain, "PROTOCOL": protocol})
        answer = post(f"{home.app.url}{page}?{query}", {"AUTH_ID": "unknown"})
        policy = [part.strip() for part in answer.headers["Content-Security-Policy"].split(";")]
        assert f"frame-ancestors {ancestors}" in policy
        assert len([part for part in policy if "frame-ancestors" in part]) == 1
        assert not any(word in answer.headers for word in ("X-Evil", "Access-Control-Allow-Origin"))
    outside = requests.get(home.app.url, timeout=10)
    assert "frame-ancestors 'none'" in outside.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", [
    "data/settings.json", "settings.json", "app.py", "views/install.tpl", "static/app.py",
    "../data/settings.json", "%2e%2e/data/settings.json", "install/../data/settings.json",
    "queue/", "logs/", ".git/config", "requirements.txt"])
def test_files_are_never_served(home, path):
    with socket.create_connection(("127.0.0.1", int(home.app.env["PORT"])), 10) as connection:
        connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 404 " in answer.partition(b"\r\n")[0]
    assert b"HTTP_404" in answer


# Limits ----------------------------------------------------------------------------------------

def raw(home, text, body=b"", end=True):
    """Send exactly this; returns the status line and the rest."""
    with socket.create_connection(("127.0.0.1", int(home.app.env["PORT"])), 10) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode("latin-1") + body)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode("utf-8", "replace")
    return answer.partition("\r\n")[0], answer


@pytest.mark.parametrize("path", ["handler?key={key}", "install", "save", "index", ""])
def test_a_body_over_100_kb_is_refused_before_it_is_read(home, path):
    head = f"POST /{path.format(key=home.key)} HTTP/1.1\nHost: x\n"
    for length in ("Content-Length: 102401", "Content-Length: 99999999999",
                   "Transfer-Encoding: chunked"):
        line, answer = raw(home, f"{head}{length}\n\n", end=False)  # the body never comes
        assert " 413 " in line, length
        assert "TOO_LARGE" in answer
    assert [path.name for path in home.app.queue() if path.name.startswith("big")] == []


def test_a_body_of_100_kb_is_taken(home):
    fields = {"code": home.code, "message_id": "big-but-fine", "message_to": "+79990000000",
              "message_body": ""}
    fields["message_body"] = "x" * (100 * 1024 - len(urlencode(fields)))
    assert post(home.handler, fields).status_code == 200
    settled(home.app, "big-but-fine")


@pytest.mark.parametrize(("length", "status"), [
    ("50", 400), ("-1", 413), ("ten", 413), ("1e2", 413), ("²", 413)])
def test_a_body_that_is_not_as_announced_is_refused(home, length, status):
    before = state(home)
    body = f"code={home.code}&message_id=short"
    line, answer = raw(home, f"POST /handler?key={home.key} HTTP/1.1\nHost: x\n"
                             f"Content-Length: {length}\n\n", body.encode())
    assert f" {status} " in line, answer
    assert ("INCOMPLETE" if status == 400 else "TOO_LARGE") in answer
    assert state(home) == before


@pytest.mark.parametrize(("line", "status"), [
    ("key=planted-in-a-line", 400), ("GET /handler?key=planted-in-a-line and more HTTP/1.1", 400),
    ("GET /handler?key=planted-in-a-line HTTP/9.9", 505),
    ("GET /handler?key=planted-in-a-line" + "x" * 70000 + " HTTP/1.1", 414)])
def test_a_broken_request_line_is_answered_and_leaves_no_trace(home, line, status):
    before = len(home.app.output())
    _, answer = raw(home, line + "\nHost: x\n\n")
    assert requests.get(home.app.url, timeout=10).status_code == 200
    news = home.app.output()[before:]
    assert "planted-in-a-line" not in news
    assert "Traceback" not in news
    assert str(status) in answer


# Files and leaks -------------------------------------------------------------------------------

def too_open(folder):
    """{path: mode} of all in a folder, itself included, that is not for its owner alone."""
    modes = {path: oct(stat.S_IMODE(path.lstat().st_mode))
             for path in [folder, *folder.rglob("*")]}
    return {path: mode for path, mode in modes.items()
            if mode != ("0o700" if path.is_dir() else "0o600")}


def test_files_are_0600_and_folders_0700(world):
    app = world.new_app(STATUSES_EVERY=0)
    for name in ("", "queue", "queue/new", "logs"):  # from git, or from a backup
        folder = app.data / name
        folder.mkdir()
        os.chmod(folder, 0o755)
    world.app = app.start()
    world.portal.app_url = app.url
    assert (app.data / "queue" / "failed").is_dir()
    assert too_open(app.data) == {}, "made so at start"
    install(world)
    world.smsru.down = True
    tried(app, send(world, "text"))
    assert app.run("statuses")[0] == 1
    assert len(app.queue()) == 1
    assert list(app.data.glob("logs/*.log"))
    assert too_open(app.data) == {}


PHONE, TEXT, KEY = "+79161234567", "planted-text Секретный текст", "planted-operator-key-Wxyz"


def save(world):
    """Install after a wrong key; returns HANDLER, and what the pages and the refusal showed.

    HANDLER in the answer to the administrator is left out: it is meant to be there.
    """
    browser = Browser(world)
    page = browser.open("install").text
    refusal = browser.save(api_key="planted-wrong-key")
    answer = browser.save(api_key=KEY)
    assert (refusal.status_code, answer.status_code) == (400, 200)
    browser.register(answer.json()["sender"])
    browser.finish()
    return answer.json()["sender"]["HANDLER"], [page, refusal.text]


def refuse_one(method, path, fields):
    """An operator that repeats in its words what it should not."""
    if fields.get("msg") == "refuse me":
        return 200, {"status": "ERROR", "status_code": 204, "status_text": f"{PHONE} {KEY}"}, {}
    return None


def portal_error(method, path, fields):
    return 500, {"error": "INTERNAL_SERVER_ERROR", "error_description": str(fields)}, {}


def live(world):
    """A life with every kind of trouble; returns the secret of HANDLER and all that was shown."""
    app, (handler, seen) = world.app, save(world)
    world.smsru.delay, world.smsru.trouble = 0, refuse_one
    world.smsru.codes["79161234568"] = 207
    for to, text in ((PHONE, TEXT), ("+79161234568", TEXT), (PHONE, "refuse me")):
        send(world, text, to)
    until(lambda: all(message["sent_at"] for message in stored(app).values()))
    world.portal.expire_tokens()
    world.portal.trouble = portal_error
    seen += [requests.get(handler.replace("handler", "statuses"), timeout=10).text]
    world.portal.trouble = None
    until(lambda: seen.append(app.run("statuses")[1]) or '"delivered": 0' not in seen[-1])
    seen += [app.run("checkserver")[1], Browser(world).open("index").text]
    seen += [post(handler + "wrong", {"message_body": TEXT}).text,
             post(handler, {"code": KEY, "message_id": PHONE, "message_body": TEXT}).text,
             requests.get(handler, timeout=10).text]
    return handler.partition("key=")[2], seen


def test_planted_secrets_are_found_nowhere_but_in_settings_json(world):
    world.smsru.keys.add(KEY)
    app = world.start_app(RETRY_AFTER=0.1, STATUSES_EVERY=0)
    handler_key, seen = live(world)
    pages = {f"answer {number}": text for number, text in enumerate(seen)}
    files = {str(path.relative_to(app.data)): path.read_text("utf-8")
             for path in app.data.rglob("*") if path.is_file() and path.name != "settings.json"}
    assert any(name.startswith("logs") and text for name, text in files.items())
    settings = saved(world)
    assert KEY in settings
    tokens = {*world.oauth.tokens, *world.oauth.refresh, world.portal.application_token}
    secrets = {KEY, "planted-wrong-key", handler_key, world.portal.client_secret, TEXT,
               "planted-text", PHONE[1:], "79161234568"}
    places = {**files, "output": app.output()}
    found = [(name, secret) for name, text in places.items()
             for secret in secrets | tokens if secret in text]
    found += [(name, secret) for name, text in pages.items() for secret in secrets | {
        token for token in tokens if token in settings} - frame_tokens(world) if secret in text]
    assert found == []


def frame_tokens(world):
    """The application token is one of the frame's own: it goes back in that very page."""
    return {world.portal.application_token}


def test_a_mistake_of_ours_shows_nothing(world, app):
    install(world)
    url, code = handler_url(world), code_of(world)
    (app.data / "settings.json").write_text('{"access_token": "planted-token"', "utf-8")
    answer = post(url, {"code": code, "message_id": "one"})
    assert (answer.status_code, answer.json()["error"]) == (500, "HTTP_500")
    assert answer.headers["Cache-Control"] == "no-store"
    for secret in ("planted-token", app.home, "app.py", "Traceback"):
        assert secret not in answer.text
    assert "planted-token" not in app.output()


def test_settings_hold_no_more_than_they_must(home):
    settings = json.loads(saved(home))
    assert home.portal.client_secret not in json.dumps(settings)
    assert not {"APP_SID", "DOMAIN", "domain", "SERVER_ENDPOINT"} & set(settings)
