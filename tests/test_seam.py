"""The operator's seam: what a fork's own class is given, what it may answer, what becomes of it."""
import json
from html.parser import HTMLParser

import pytest
from pretend import Browser, until
from seam import (
    LAUNCHER,
    OBEY,
    RETRY_AFTER,
    TOKEN,
    Mouth,
    Seam,
    SmscServer,
    TelegramServer,
)
from steps import (
    HOUR,
    NUMBER,
    calls,
    folder_of,
    forget,
    logged,
    make_due,
    one_pass,
    outcomes,
    pause,
    read,
    rests,
    send,
    settled,
    told,
    tried,
)


@pytest.fixture(scope="module")
def obedient_world(tmp_path_factory):
    with Seam(tmp_path_factory.mktemp("obedient"), "obedient", Mouth) as world:
        assert Browser(world).install(mood="good").status_code == 200
        yield world


@pytest.fixture
def obedient(obedient_world):
    return obedient_world.fresh()


def tried_once(world, message_id):
    """Wait until a try has ended sending; that sending rests is written down last."""
    tried(world.app, message_id)
    until(lambda: rests(world.app) > 0, message="sending does not rest")


# What send() may answer --------------------------------------------------------------------------

NO_OUTCOME = ["boom()", "1 / 0", "open('/no/such/file')", "None", "7", "''", "'sent'", "()",
              "('sent',)", "('sent', '1', '2')", "('', '')", "('', {'id': 1})", "('OK', '1')",
              "('delivered', '1')", "(['sent'], '1')", "({}, '1')", "(None, None)", "{'sent': 1}",
              "('in doubt', 'it broke off')"]


@pytest.mark.parametrize("answer", NO_OUTCOME)
def test_what_is_no_outcome_is_a_doubt_tried_once_more_and_then_failed(obedient, answer):
    obedient.order(send=answer)
    message_id = send(obedient, "who knows")
    tried_once(obedient, message_id)
    assert read(obedient.app, message_id)["in_doubt"] is True
    assert rests(obedient.app) <= RETRY_AFTER
    assert told(obedient, message_id) == ["sent", "failed"]
    assert outcomes(obedient.app, message_id) == ["in doubt"] * 2
    assert [one["message"]["in_doubt"] for one in obedient.seen("send")] == [False, True]


ACCOUNT = {"key": RETRY_AFTER, "money": RETRY_AFTER, "limit": HOUR, "busy": RETRY_AFTER,
           "down": RETRY_AFTER}


@pytest.mark.parametrize("word", ACCOUNT)
def test_what_concerns_the_account_ends_sending_and_nothing_is_lost(obedient, word):
    obedient.order(send=f"('{word}', 'a note')")
    first = send(obedient, "the first")
    tried_once(obedient, first)
    assert 0.9 * ACCOUNT[word] < rests(obedient.app) <= ACCOUNT[word]
    second = send(obedient, "the second")
    assert one_pass(obedient)["errors"] == {"operator": word}
    assert len(obedient.seen("send")) == 1
    assert logged(obedient.app, "send", first)[0]["note"] == "a note"
    assert not read(obedient.app, first)["in_doubt"]
    obedient.order()
    make_due(obedient.app)
    one_pass(obedient)  # sends, or leaves it to a sender that has not let go yet
    settled(obedient.app, first, second)


def test_later_and_failed_concern_one_message_and_the_others_go_on(obedient):
    obedient.order(send="('sent', '1') if message['text'] == 'good' else (message['text'], 'why')")
    ids = [send(obedient, text) for text in ("later", "failed", "good")]
    for message_id in ids:
        tried(obedient.app, message_id)
    assert [folder_of(obedient.app, one) for one in ids] == ["new", "failed", "sent"]
    assert 0.9 * RETRY_AFTER < pause(obedient.app, ids[0]) <= RETRY_AFTER
    assert rests(obedient.app) < 0


def test_a_message_is_what_the_readme_says_and_its_id_is_the_same_when_it_comes_again(obedient):
    """So an operator with idempotency keys takes message_id for one, and doubts cost nothing."""
    obedient.order(send="('sent', 'it had it') if message['in_doubt'] else boom()")
    message_id = send(obedient, "twice or once", "8 (925) 507-06-02 ext")
    tried_once(obedient, message_id)
    make_due(obedient.app)
    one_pass(obedient)
    settled(obedient.app, message_id)
    first, again = [one["message"] for one in obedient.seen("send")]
    assert {name: first[name] for name in ("message_id", "to", "text", "in_doubt")} == {
        "message_id": message_id, "to": "8 (925) 507-06-02 ext", "text": "twice or once",
        "in_doubt": False}
    assert again == {**first, "in_doubt": True}
    assert outcomes(obedient.app, message_id) == ["in doubt", "sent"]


@pytest.mark.parametrize("answer", ["('sent', '')", "('sent', None)"])
def test_without_an_id_sent_is_all_that_bitrix24_is_told_and_the_message_leaves(obedient, answer):
    obedient.order(send=answer)
    message_id = send(obedient, "no receipts")
    settled(obedient.app, message_id)
    assert one_pass(obedient)["waiting"] == 0
    assert obedient.portal.messages[message_id]["history"] == ["sent", "sent"]
    assert obedient.seen("statuses") == []


@pytest.mark.parametrize(("given", "stored"), [
    ("'+7 925/№ 7:один,два'", "+7 925/№ 7:один,два"), ("4711", "4711"), ("'x' * 500", "x" * 500)])
def test_an_id_may_be_any_text_and_comes_back_as_it_was(obedient, given, stored):
    obedient.order(send=f"('sent', {given})", statuses="('', {one: 'delivered' for one in ids})")
    message_id = send(obedient, "composite")
    settled(obedient.app, message_id)
    assert one_pass(obedient)["delivered"] == 1
    assert [one["ids"] for one in obedient.seen("statuses")] == [[stored]]


def test_whatever_a_note_holds_a_line_of_the_log_is_one_json_object(obedient):
    obedient.order(send=r"('later', 'two\nlines \ud800 \" {')")
    message_id = send(obedient, "noted")
    tried(obedient.app, message_id)
    assert logged(obedient.app, "send", message_id)[0]["note"].startswith("two\nlines")


# What statuses() may answer ----------------------------------------------------------------------

@pytest.mark.parametrize(("answer", "error"), [
    ("boom()", "down"), ("None", "down"), ("'down'", "down"), ("('?', {})", "down"),
    ("('in doubt', {})", "down"), ("('down', {})", "down"), ("('busy', '')", "busy"),
    ("('key', None)", "key"), ("('', None)", None), ("('', [])", None), ("('', 'OK')", None),
    ("('', dict.fromkeys(ids, 'on its way'))", None), ("('', dict.fromkeys(ids))", None),
    ("('', dict.fromkeys(ids, ['delivered']))", None), ("('', {'another': 'delivered'})", None)])
def test_what_says_nothing_final_keeps_the_message_and_the_portal_is_told_the_rest(
        obedient, answer, error):
    waiting = send(obedient, "what became of it")
    settled(obedient.app, waiting)
    obedient.order(send="('failed', 'no')", statuses=answer)
    failed = send(obedient, "known to be failed")
    tried(obedient.app, failed)
    totals = one_pass(obedient)
    assert totals["errors"].get("operator") == error
    assert (totals["failed"], totals["waiting"]) == (1, 1)
    assert folder_of(obedient.app, waiting) == "sent"
    assert obedient.portal.messages[waiting]["history"] == ["sent"]


@pytest.mark.parametrize("status", ["sent", "delivered", "undelivered", "failed"])
@pytest.mark.parametrize("trouble", ["", "busy"], ids=["all well", "trouble halfway"])
def test_each_final_status_is_told_and_the_message_leaves(obedient, status, trouble):
    """Where an operator is asked id by id, what it said before the trouble counts."""
    obedient.order(statuses=f"('{trouble}', dict.fromkeys(ids, '{status}'))")
    message_id = send(obedient, "final")
    settled(obedient.app, message_id)
    totals = one_pass(obedient)
    assert (totals[status], totals["waiting"]) == (1, 0)
    assert totals["errors"] == ({"operator": trouble} if trouble else {})
    assert obedient.portal.messages[message_id]["history"] == ["sent", status]


# What check() may answer -------------------------------------------------------------------------

@pytest.mark.parametrize(("answer", "status", "code"), [
    ("('key', 'wrong')", 400, "OPERATOR_KEY"), ("boom()", 503, "OPERATOR_DOWN"),
    ("1 / 0", 503, "OPERATOR_DOWN"), ("None", 503, "OPERATOR_DOWN"),
    ("'key'", 503, "OPERATOR_DOWN"), ("('?', '')", 503, "OPERATOR_DOWN"),
    ("(['key'], '')", 503, "OPERATOR_DOWN"), ("('in doubt', '')", 503, "OPERATOR_DOWN"),
    ("('down', '')", 503, "OPERATOR_DOWN"), ("('busy', '')", 503, "OPERATOR_DOWN"),
    ("('money', '')", 503, "OPERATOR_DOWN")])
def test_a_check_that_does_not_say_yes_saves_nothing_and_says_why(obedient, answer, status, code):
    before = obedient.saved()
    obedient.order(check=answer)
    browser = Browser(obedient)
    browser.open("index")
    refused = browser.save(mood="another")
    assert (refused.status_code, refused.json()["error"]) == (status, code)
    assert TOKEN not in refused.text
    assert obedient.saved() == before


# What nobody may read ----------------------------------------------------------------------------

@pytest.mark.parametrize("call", OBEY)
def test_an_exceptions_words_are_nowhere_but_its_type_and_its_line_are_in_the_log(obedient, call):
    """They may hold a secret, such as an address with a token."""
    message_id = send(obedient, "before")
    settled(obedient.app, message_id)
    obedient.order(**{call: "boom()"})
    browser = Browser(obedient)
    browser.open("index")
    page = browser.save(mood="another").text if call == "check" else ""
    if call == "send":
        tried_once(obedient, send(obedient, "a try"))
    page += json.dumps(one_pass(obedient)) + Browser(obedient).open("index").text
    mistake = logged(obedient.app, "mistake")[0]
    assert mistake["error"] == "RuntimeError"
    line = LAUNCHER.splitlines().index('    raise RuntimeError(f"no answer from '
                                       '{URL}/{TOKEN}/send for you")') + 1
    assert f"my_operator.py:{line}" in mistake["where"]
    assert [words for words in (TOKEN, "for you") if words in page + obedient.written()] == []


# post(): what was answered is handed over --------------------------------------------------------

DEEP = " " + "[" * 100000
HANDED_OVER = [
    (200, '["a", {"b": 1}]', ["a", {"b": 1}]), (200, "[]", []), (200, "OK;1234", "OK;1234"),
    (200, '{"error": null}', {"error": None}), (200, '{"error": "0"}', {"error": "0"}),
    (400, '{"error": {"code": 5}}', {"error": {"code": 5}}), (200, "100.50", 100.5),
    (200, "null", None), (200, "true", True), (200, '"quoted"', "quoted"), (204, "", ""),
    (200, '{"ключ": "й 🙂"}', {"ключ": "й 🙂"}),
    (200, "ОШИБКА=7", "ОШИБКА=7"), (200, DEEP, DEEP), (200, "{broken", "{broken"),
    (401, '{"code": 401}', {"code": 401}), (418, "short and stout", "short and stout"),
    (429, '{"retry_after": 5}', {"retry_after": 5}), (500, "<html>", "<html>"),
    (502, '{"id": 1}', {"id": 1}), (503, "later", "later"), (302, "elsewhere", "elsewhere")]


@pytest.mark.parametrize(("status", "body", "answer"), HANDED_OVER)
def test_post_hands_over_json_of_any_type_or_else_the_text(obedient, status, body, answer):
    obedient.party.says = status, body.encode(), {
        "Content-Type": "text/plain; charset=utf-8", "Location": obedient.party.url + "/elsewhere"}
    obedient.order(send="seen('post', app.post(URL + '/here', data={'a': 'b'})) or ('sent', '')")
    settled(obedient.app, send(obedient, "posted"))
    assert obedient.seen("post") == [[status, answer]]
    assert [path for path, _ in obedient.party.requests] == ["/here"]


@pytest.mark.parametrize("url", [
    "'http://example.com/'", "'http://127.0.0.1.example.com/'", "'ftp://127.0.0.1/'", "''",
    "'http://127.0.0.1:9/'", "'https://no-such-operator.invalid/'"])
def test_post_says_0_where_nothing_was_sent(obedient, url):
    """What is not https goes to this machine only: a key must not travel in the open."""
    obedient.order(send=f"seen('post', app.post({url}, data={{}})[0]) or ('down', '')")
    tried_once(obedient, send(obedient, "posted"))
    assert obedient.seen("post") == [0]


def cut_it(method, path, fields):
    raise ConnectionResetError


def test_post_raises_where_a_message_may_have_been_sent(obedient):
    obedient.party.trouble = cut_it
    obedient.order(send="app.post(f'{URL}/{TOKEN}', data={}) and ('later', '')")
    message_id = send(obedient, "posted")
    tried_once(obedient, message_id)
    assert outcomes(obedient.app, message_id) == ["in doubt"]
    assert len(obedient.party.requests) == 1
    assert TOKEN not in obedient.written()


@pytest.mark.parametrize(("how", "method", "fields", "header"), [
    ("data={'a': 'й&='}", "POST", {"a": "й&="}, ("Content-Type", "x-www-form-urlencoded")),
    ("json={'a': ['й']}", "POST", {"a[0]": "й"}, ("Content-Type", "application/json")),
    ("method='GET', params={'a': 'й'}", "GET", {"a": "й"}, ("Accept", "*/*")),
    ("'PUT', json={}", "PUT", {}, ("Content-Type", "application/json")),
    ("data={}, headers={'Token': 'abc'}", "POST", {}, ("Token", "abc")),
    ("data={}, auth=('a', 'b')", "POST", {}, ("Authorization", "Basic YTpi"))])
def test_post_takes_what_requests_takes(obedient, how, method, fields, header):
    obedient.party.says = 200, b"{}", {}
    obedient.order(send=f"app.post(URL + '/here', {how}) and ('sent', '')")
    settled(obedient.app, send(obedient, "posted"))
    asked, (path, given), headers = obedient.party.asked
    assert (asked, path, given) == (method, "/here", fields)
    assert header[1] in headers[header[0]]


# Operators of other kinds ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def smsc_world(tmp_path_factory):
    with Seam(tmp_path_factory.mktemp("smsc"), "smsc", SmscServer) as world:
        yield world


GOOD = {"login": SmscServer.login, "password": SmscServer.password, "sender": "Acme & Co"}


@pytest.fixture
def smsc(smsc_world):
    """All three fields saved, nothing waiting."""
    smsc_world.fresh()
    smsc_world.portal.bindings, smsc_world.party.password = [], SmscServer.password
    assert Browser(smsc_world).install(**GOOD).status_code == 200
    return smsc_world


@pytest.fixture
def telegram(tmp_path):
    with Seam(tmp_path, "telegram", TelegramServer) as world:
        assert Browser(world).install(token=TOKEN).status_code == 200
        yield world


def test_an_operator_that_answers_texts_and_lists_is_asked_by_its_composite_ids(smsc):
    message_id = send(smsc, "composite")
    settled(smsc.app, message_id)
    assert outcomes(smsc.app, message_id) == ["sent"]
    assert one_pass(smsc)["delivered"] == 1
    assert [fields["ids"] for fields in calls(smsc.party, "/status")] == [f"{NUMBER}:1234"]
    assert len(calls(smsc.party, "/send")) == 1


def test_an_error_that_is_null_is_none_and_without_receipts_sent_is_the_last_word(telegram):
    message_id = send(telegram, "no receipts")
    settled(telegram.app, message_id)
    assert read(telegram.app, message_id)["operator_id"] == "77"
    assert one_pass(telegram) == {"sent": 1, "delivered": 0, "undelivered": 0, "failed": 0,
                                  "waiting": 0, "errors": {}}
    assert telegram.seen("ids") == [["77"]]
    assert telegram.portal.messages[message_id]["history"] == ["sent", "sent"]


@pytest.mark.parametrize(("status", "outcome"), [
    (429, "busy"), (401, "key"), (503, "down"), (502, "in doubt"), (200, "in doubt")])
def test_what_http_says_becomes_the_operators_word_and_its_token_is_nowhere(
        telegram, status, outcome):
    telegram.party.trouble = lambda method, path, fields: (status, {"error": "for you"}, {})
    message_id = send(telegram, "not now")
    tried_once(telegram, message_id)
    telegram.party.trouble = cut_it
    make_due(telegram.app)
    one_pass(telegram)
    tried(telegram.app, message_id, times=2)
    assert outcomes(telegram.app, message_id) == [outcome, "in doubt"]
    assert TOKEN not in telegram.written()


# The form and the page ---------------------------------------------------------------------------

class Page(HTMLParser):
    """A page's inputs by their names, what it shows of each field, its warnings."""

    def __init__(self, text):
        super().__init__()
        self.inputs, self.shown, self.warnings, self.place = {}, {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.place = attrs.get("data-key") or attrs.get("class")
        if tag == "input":
            self.inputs[attrs["name"]] = attrs

    def handle_data(self, text):
        if self.place == "note warning":
            self.warnings.append(text.strip())
        elif self.place:
            self.shown[self.place] = text

    def handle_endtag(self, tag):
        self.place = None


def test_a_secret_is_a_password_input_and_a_mask_and_the_other_fields_are_shown(smsc):
    answer = Browser(smsc).open("index")
    page = Page(answer.text)
    assert {name: page.inputs[name]["type"] for name in GOOD} == {
        "login": "text", "password": "password", "sender": "text"}
    assert {name: page.shown[name] for name in GOOD} == {**GOOD, "password": "••••"}
    assert {name: page.inputs[name]["placeholder"] for name in GOOD} == {
        **GOOD, "password": "••••"}
    assert not any(page.inputs[name].get("value") for name in GOOD)
    assert SmscServer.password not in answer.text
    assert SmscServer.password not in Browser(smsc).open("install").text


@pytest.mark.parametrize("password", ["x", "12345678", "long " * 50])
def test_the_mask_does_not_tell_how_long_a_secret_is(smsc, password):
    smsc.party.password = password.strip()
    browser = Browser(smsc)
    browser.open("index")
    assert browser.save(password=password).status_code == 200
    assert Page(Browser(smsc).open("index").text).shown["password"] == "••••"


def test_each_field_is_saved_under_its_operator_and_an_empty_one_keeps_what_is_saved(smsc):
    browser = Browser(smsc)
    browser.open("index")
    assert browser.save(login="", password="  ", sender=" Other ").status_code == 200
    assert smsc.saved()["operators"] == {"smsc": {**GOOD, "sender": "Other"}}
    assert {name: smsc.seen("settings")[-1][name] for name in GOOD} == {**GOOD, "sender": "Other"}


def test_a_refusal_names_no_single_field_and_keeps_what_is_saved(smsc):
    browser = Browser(smsc)
    browser.open("index")
    answer = browser.save(password="wrong")
    assert (answer.status_code, answer.json()["error"]) == (400, "OPERATOR_KEY")
    said = answer.json()["error_description"].lower()
    assert [word for word in ("login", "password", "sender", "key") if word in said] == []
    assert smsc.saved()["operators"]["smsc"] == GOOD


def test_the_first_save_gives_every_field_as_text_and_another_operator_gets_none_of_them(tmp_path):
    with Seam(tmp_path, "smsc", SmscServer) as world:
        assert Page(Browser(world).open("index").text).shown["login"]
        assert Browser(world).install(login="acme").status_code == 400
        given = {name: world.seen("settings")[-1][name] for name in GOOD}
        assert given == {"login": "acme", "password": "", "sender": ""}
        assert Browser(world).install(**GOOD).status_code == 200
        world.app.stop()
        world.start_fork("obedient", DATA_DIR=world.app.data)
        assert Browser(world).install(mood="good").status_code == 200
        assert not set(GOOD) & set(world.seen("check")[-1]["settings"])
        assert world.saved()["operators"] == {"smsc": GOOD, "obedient": {"mood": "good"}}


ENDS = (*ACCOUNT, "in doubt")


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_the_page_has_words_of_its_own_for_everything_that_ends_sending(obedient, lang):
    said = {}
    for word in ENDS:
        obedient.order(send=f"('{word}', '')")
        forget(obedient.app)
        tried_once(obedient, send(obedient, "no"))
        assert one_pass(obedient)["errors"] == {"operator": word}
        said[word], = Page(Browser(obedient).open("index", lang).text).warnings
    assert len(set(said.values())) == len(ENDS)
    assert [word for word, words in said.items() if f"({word})" in words] == []


# The start ---------------------------------------------------------------------------------------

def test_the_fork_says_its_names_and_has_the_commands(tmp_path):
    with Seam(tmp_path, "obedient", Mouth) as world:
        world.app.stop()
        world.start_fork("obedient", SENDER_NAME="Acme SMS", DATA_DIR=world.app.data)
        assert Browser(world).install(mood="good").status_code == 200
        assert [one["NAME"] for one in world.portal.senders.values()] == ["Acme SMS"]
        assert "with the operator obedient\n" in world.app.output()
        settled(world.app, send(world, "by the command"))
        world.order(statuses="('', dict.fromkeys(ids, 'delivered'))")
        code, said = world.app.run("statuses")
        assert (code, json.loads(said)["delivered"]) == (0, 1)
        assert world.app.run("checkserver")[0] == 0
