"""Nobody in: forged frames and events, hostile addresses, headers, limits, files, leaks."""
import json
import os
import socket
import stat
from urllib.parse import urlencode

import pytest
import requests
from portal import ADMINISTRATOR, EMPLOYEE, GOOD_KEY, Browser, World, install, until
from wire import Party

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
        world.handler = world.portal.senders["fastsms"]["HANDLER"]
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
    return ((world.app.data / "settings.json").read_bytes(), dict(world.portal.senders),
            list(world.portal.bindings), world.app.queue())


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
    before = (home.app.data / "settings.json").read_bytes()
    fields = home.portal.message_fields("+79990000000", "text", "tokens", "fastsms",
                                        author=EMPLOYEE)
    assert post(home.handler, {**fields, "auth[refresh_token]": "r" * 70}).status_code == 200
    until(lambda: home.smsru.sent)
    assert (home.app.data / "settings.json").read_bytes() == before


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
                                  data={"code": "fastsms", "message_id": "forged"})
        assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_KEY"), query
    assert state(home) == before


@pytest.mark.parametrize("token", ["", "wrong", "токен"])
def test_a_wrong_application_token_is_refused_in_spite_of_the_right_key(home, token):
    before = state(home)
    answer = post(home.handler, {"code": "fastsms", "message_id": "forged", "message_to": "+7999",
                                 "message_body": "text", "auth[application_token]": token})
    assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_APPLICATION_TOKEN")
    assert state(home) == before


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
    assert str(catcher.port) not in (app.data / "settings.json").read_text("utf-8")


def test_oauth_server_and_operator_are_never_followed_elsewhere(world, catcher):
    world.start_app(RETRY_AFTER=0.1, STATUSES_EVERY=0)
    browser = Browser(world)
    browser.open("install")
    for status in (301, 302, 307, 308):
        def away(method, path, fields, status=status):
            return status, "", {"Location": catcher.url + path}

        world.oauth.trouble = away
        assert browser.save(api_key=GOOD_KEY).status_code in (403, 503)
        world.oauth.trouble, world.smsru.trouble = None, away
        assert browser.save(api_key=GOOD_KEY).status_code == 503  # /auth/check
        world.smsru.trouble = None
        assert install(world).status_code == 200
        world.smsru.trouble = away
        assert world.portal.send_message("+79990000000", "text")[1] == 200
        until(lambda: world.smsru.requests[-1][0] == "/sms/send")
        world.smsru.trouble = None
    waiting = world.app.queue()
    until(lambda: all(json.loads(path.read_text("utf-8"))["tries"] for path in waiting))
    for path in waiting:
        os.utime(path, (1000, 1000))
    world.portal.expire_tokens()
    world.smsru.delay, world.oauth.trouble = 0, away
    for _ in range(2):  # it is sent, then it is reported
        code, _ = world.app.run("statuses")
    assert code == 1
    assert [path for path, _ in world.oauth.requests][-1] == "/oauth/token/"
    assert list(catcher.requests) == []


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
    fields = {"code": "fastsms", "message_id": "big-but-fine", "message_to": "+79990000000",
              "message_body": ""}
    fields["message_body"] = "x" * (100 * 1024 - len(urlencode(fields)))
    assert post(home.handler, fields).status_code == 200


@pytest.mark.parametrize(("length", "status"), [
    ("50", 400), ("-1", 413), ("ten", 413), ("1e2", 413), ("²", 413)])
def test_a_body_that_is_not_as_announced_is_refused(home, length, status):
    before = state(home)
    line, answer = raw(home, f"POST /handler?key={home.key} HTTP/1.1\nHost: x\n"
                             f"Content-Length: {length}\n\n", b"code=fastsms&message_id=short")
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

def modes(folder):
    """{path: mode} of a folder and everything below it."""
    return {str(path): oct(stat.S_IMODE(path.lstat().st_mode))
            for path in [folder, *folder.rglob("*")]}


def test_files_are_0600_and_folders_0700(world):
    app = world.new_app(STATUSES_EVERY=0, RETRY_AFTER=0.1)
    for folder in (app.data, app.data / "queue", app.data / "logs"):  # from git, or from a backup
        folder.mkdir()
        os.chmod(folder, 0o755)
    world.app = app.start()
    world.portal.app_url = app.url
    found = modes(app.data)  # made so at start
    assert set(found.values()) == {"0o700"}
    assert str(app.data / "queue") in found
    install(world)
    world.smsru.down = True
    world.portal.send_message("+79990000000", "text")
    until(lambda: world.smsru.requests[-1][0] == "/sms/send")
    until(lambda: app.run("statuses")[0] == 1)  # as soon as the message is due again
    assert len(app.queue()) == 1
    assert list(app.data.glob("logs/*.log"))
    wrong = {path: mode for path, mode in modes(app.data).items()
             if mode != ("0o700" if os.path.isdir(path) else "0o600")}
    assert wrong == {}


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
        assert world.portal.send_message(to, text)[1] == 200
    until(lambda: not any(text in path.read_text("utf-8") for path in app.queue()
                          for text in (TEXT, "refuse me")))
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
    saved = (app.data / "settings.json").read_text("utf-8")
    assert KEY in saved
    tokens = {*world.oauth.tokens, *world.oauth.refresh, world.portal.application_token}
    secrets = {KEY, "planted-wrong-key", handler_key, world.portal.client_secret, TEXT,
               "planted-text", PHONE[1:], "79161234568"}
    places = {**files, "output": app.output()}
    found = [(name, secret) for name, text in places.items()
             for secret in secrets | tokens if secret in text]
    found += [(name, secret) for name, text in pages.items() for secret in secrets | {
        token for token in tokens if token in saved} - frame_tokens(world) if secret in text]
    assert found == []


def frame_tokens(world):
    """The application token is one of the frame's own: it goes back in that very page."""
    return {world.portal.application_token}


def test_a_mistake_of_ours_shows_nothing(world, app):
    install(world)
    handler = world.portal.senders["fastsms"]["HANDLER"]
    (app.data / "settings.json").write_text('{"access_token": "planted-token"', "utf-8")
    answer = post(handler, {"code": "fastsms", "message_id": "one"})
    assert (answer.status_code, answer.json()["error"]) == (500, "HTTP_500")
    assert answer.headers["Cache-Control"] == "no-store"
    for secret in ("planted-token", app.home, "app.py", "Traceback"):
        assert secret not in answer.text
    assert "planted-token" not in app.output()


def test_settings_hold_no_more_than_they_must(home):
    saved = json.loads((home.app.data / "settings.json").read_text("utf-8"))
    assert home.portal.client_secret not in json.dumps(saved)
    assert not {"APP_SID", "DOMAIN", "domain", "SERVER_ENDPOINT"} & set(saved)
