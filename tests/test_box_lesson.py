"""Beside each request of the training portal: why, which code, whose message, how it ended.

The story is played once, its page loaded once more; each rule then looks at that page in both
languages and three sizes.
"""
import ast
import re
from pathlib import Path

import pytest
import requests
from pretend import GOOD_KEY, World
from pretend.tab import FLAT, LAYOUTS, TEXTS, Tab
from selenium.webdriver.common.action_chains import ActionChains

APP = (Path(__file__).resolve().parents[1] / "app.py").read_text("utf-8")
NUMBER, TEXT = "+7 (999) 000-00-00", "Ваш код подтверждения: 1234"
REFUSED, NO_WAY = "+7 (999) 000-00-22", "no way"


@pytest.fixture(scope="module")
def story(chromium):
    """Installed; one message delivered, another one refused; then the page was loaded again."""
    with World() as world:
        world.start_box(STATUSES_EVERY=0.4, RETRY_AFTER=0.01)
        world.smsru.delay, world.smsru.slow = 0.3, 0
        tab = Tab(chromium, world.portal.url)
        tab.open().page("install")
        tab.save(GOOD_KEY)
        tab.page("index")
        tab.send(NUMBER, TEXT)
        tab.message(TEXT, "delivered")
        tab.send(REFUSED, NO_WAY)
        tab.message(NO_WAY, "failed")
        tab.driver.refresh()
        tab.wait_for_box()
        tab.show("card")
        tab.world = world
        yield tab
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.get("about:blank")


@pytest.fixture(params=LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[1][0]}")
def seen(story, request):
    """The page in one language and size; what a test has opened is closed after it."""
    story.lay_out(*request.param)
    story.rows = {one["n"]: one for one in requests.get(
        story.world.portal.url + "/box/news", params={"after": -1}, timeout=10).json()["exchanges"]}
    story.wait(lambda: len(story.wire()) == len(story.rows))
    yield story
    story.run("""
        document.querySelectorAll('#wire [aria-expanded=true]').forEach((one) => one.click());
        document.querySelector('#filters button').click();
        document.querySelectorAll('.trace[aria-pressed=true]').forEach((one) => one.click());
        scrollTo(0, 0);""")


def row(tab, **wanted):
    """The number of the last exchange like that, as the server tells it."""
    return [n for n, one in tab.rows.items()
            if all(one[name] == value for name, value in wanted.items())][-1]


def opened(tab, n):
    """Unfold that row, wait until its code is there; its selector."""
    css = f"#wire [data-n='{n}']"
    tab.click(css + " .line")
    tab.wait(lambda: tab.text(css + " .function pre") or not tab.rows[n]["function"])
    return css


# Why, and which code --------------------------------------------------------------------------

def test_each_row_says_why_in_short_and_in_full_when_it_is_opened(seen):
    shown = dict(seen.run("""return [...document.querySelectorAll('#wire .exchange')].map((row) =>
        [Number(row.dataset.n), row.querySelector('.short').textContent]);"""))
    assert shown == {n: one["short"][seen.lang] for n, one in seen.rows.items()}
    assert all(shown.values())
    n = row(seen, kind="messageservice.sender.update")
    assert seen.text(opened(seen, n) + " .why") == seen.rows[n]["why"][seen.lang]


def function(name):
    """Where a function stands in app.py: first line, last line, its text from there."""
    node = next(one for one in ast.parse(APP).body if getattr(one, "name", "") == name)
    first = min(one.lineno for one in [node, *node.decorator_list])
    return first, node.end_lineno, "\n".join(APP.splitlines()[first - 1:node.end_lineno])


def test_each_row_shows_the_code_that_made_it_and_the_way_from_there(seen):
    css = opened(seen, row(seen, kind="/handler")) + " .function"
    first, last, text = function("handler")
    head = seen.text(css + " h4")
    assert "handler()" in head and "handler.php" in head
    assert seen.say("lines", first=first, last=last) in head
    assert seen.run("return document.querySelector(arguments[0]).textContent", css + " pre") == text
    words = seen.text(css + " .next")
    seen.click(css + " .next")
    seen.wait(lambda: len(seen.driver.find_elements("css selector", css)) == 2)
    following = seen.find(css + " + .function").get_attribute("data-name")
    assert words == seen.say("next-function", name=following + "()")
    assert f"def {following.split('.')[-1]}(" in seen.text(css + " + .function pre")


# Groups, folds, the filter ---------------------------------------------------------------------

def heads(tab):
    found = tab.driver.find_elements("css selector", "#wire .group-head")
    return [one.text for one in found if one.is_displayed()]


def test_rows_stand_under_what_they_belong_to(seen):
    found = "\n".join(heads(seen))
    names = [seen.say("group-install"), seen.say("group-save"),
             seen.say("group-message", name=TEXT), seen.say("group-pass", name=""),
             seen.say("group-message", name=NO_WAY)]
    places = [found.find(name) for name in names]
    assert -1 not in places and places == sorted(places), found


def test_a_pass_is_explained_where_it_first_appears(seen):
    first = next(head for head in heads(seen) if head.startswith(seen.say("group-pass", name="")))
    assert [head for head in heads(seen) if seen.say("pass-why") in head] == [first]


def test_what_says_nothing_new_is_folded(seen):
    def shown():
        return {line["n"] for line in seen.wire() if line["shown"]}

    quiet = {n for n, one in seen.rows.items() if one["quiet"]}
    kinds = {seen.rows[n]["kind"] for n in quiet}
    assert {"getInitData", "resizeWindow"} <= kinds
    assert shown() == set(seen.rows) - quiet
    fold = seen.find("#wire .fold:not([hidden])")
    count = int(re.search(r"\d+", fold.text)[0])
    seen.click("#wire .fold:not([hidden])")
    seen.wait(lambda: len(shown() & quiet) == count)


def test_a_filter_shows_one_script_of_the_lesson(seen):
    for script in ("handler", "crest", "statuses"):
        seen.click(f"#filters [data-script='{script}']")
        left = {line["script"] for line in seen.wire() if line["shown"]}
        assert left == {script}
    seen.click("#filters [data-script='']")
    assert len({line["script"] for line in seen.wire() if line["shown"]}) >= 4


# How it ended ----------------------------------------------------------------------------------

COLOURS = """
const colour = (one) =>
  getComputedStyle(one, one.matches('li') ? '::before' : null).backgroundColor;
const legend = [...document.querySelectorAll('#legend [data-outcome]')];
const rows = [...document.querySelectorAll('#wire .exchange')];
return {
  legend: Object.fromEntries(legend.map((one) => [one.dataset.outcome, colour(one)])),
  rows: Object.fromEntries(rows.map((row) => [row.dataset.n,
    [colour(row.querySelector('.code')), row.querySelector('.code').textContent]])) };"""


def test_colour_says_the_outcome_and_the_legend_what_the_colours_mean(seen):
    found = seen.run(COLOURS)
    assert len(set(found["legend"].values())) == 3
    for n, one in seen.rows.items():
        if one["outcome"] != "none":
            assert found["rows"][str(n)][0] == found["legend"][one["outcome"]], one
    outcomes = {one["kind"]: one["outcome"] for one in seen.rows.values() if one["status"] == 400}
    assert outcomes == {"messageservice.sender.update": "expected"}
    refused = seen.rows[row(seen, kind="/sms/send")]
    assert (refused["status"], refused["outcome"]) == (200, "bad")
    names = [one.text for one in seen.driver.find_elements("css selector", "#legend li")]
    assert names == [seen.say(name) for name in ("good", "expected", "bad", "pending")]


def test_a_post_message_has_no_status(seen):
    found = seen.run(COLOURS)["rows"]
    said = [found[str(n)][1] for n, one in seen.rows.items() if one["method"] == "postMessage"]
    assert said and set(said) == {""}
    assert found[str(row(seen, kind="/handler"))][1] == "200"


def test_each_row_says_when_and_how_long(seen):
    for n, one in seen.rows.items():
        if not one["quiet"]:
            text = seen.run("return document.querySelector(arguments[0]).textContent",
                            f"#wire [data-n='{n}'] .time")
            assert re.fullmatch(r"\d+:\d\d:\d\d(\s[AP]M)? · <?[\d.]+ \w+", text), text


# The card and its rows -------------------------------------------------------------------------

def lit(tab, css):
    return set(tab.run("return [...document.querySelectorAll(arguments[0])].map((one) =>"
                       "one.dataset.n || one.dataset.id)", css + ".lit"))


def hover(tab, css):
    tab.run("document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })", css)
    ActionChains(tab.driver).move_to_element(tab.find(css)).perform()


def test_a_message_and_its_requests_light_each_other_up(seen):
    message = next(one["id"] for one in seen.messages() if TEXT in one["text"])
    rows = {str(n) for n, one in seen.rows.items() if message in one["messages"]}
    kinds = {seen.rows[int(n)]["kind"] for n in rows}
    assert kinds == {"/handler", "/sms/send", "/sms/status", "batch"}
    hover(seen, f"#messages [data-id='{message}'] .body")
    seen.wait(lambda: lit(seen, "#wire .exchange") == rows)
    hover(seen, f"#wire [data-n='{row(seen, kind='/handler')}'] .what")  # of the other message
    seen.wait(lambda: lit(seen, "#messages li") and message not in lit(seen, "#messages li"))
    seen.click(f"#messages [data-id='{message}'] .trace")
    first = min(rows, key=int)
    seen.wait(lambda: seen.in_sight(f"#wire [data-n='{first}'] .what"))
    hover(seen, "#disk-title")
    assert lit(seen, "#wire .exchange") == rows, "what was pressed stays lit"


# An opened row ---------------------------------------------------------------------------------

def test_a_request_is_copied_as_curl(seen):
    seen.driver.execute_cdp_cmd("Browser.grantPermissions", {
        "permissions": ["clipboardReadWrite"], "origin": seen.world.portal.url})
    n = row(seen, kind="/handler")
    seen.click(opened(seen, n) + " .curl")
    seen.wait(lambda: seen.text("#note") == seen.say("curl-copied"))
    copied = seen.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == seen.rows[n]["curl"] and copied.startswith("curl ")


def test_a_row_opened_at_the_end_of_the_list_comes_into_sight(seen):
    last = [line["n"] for line in seen.wire() if line["shown"]][-1]
    css = f"#wire [data-n='{last}']"
    seen.run("document.querySelector(arguments[0]).scrollIntoView({ block: 'end' })", css)
    seen.find(css + " .line").click()
    seen.wait(lambda: seen.in_sight(css + " .detail .why"))
    if seen.size != FLAT:
        seen.wait(lambda: seen.in_sight(css + " .function h4"))


BROKEN = """
const words = [];
document.querySelectorAll(arguments[0] + ' dt').forEach(function (name) {
  const walker = document.createTreeWalker(name, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    for (const found of walker.currentNode.data.matchAll(/\\w+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, found.index);
      range.setEnd(walker.currentNode, found.index + found[0].length);
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) words.push(found[0]);
    }
  }
});
return words;"""


def test_field_names_do_not_break_in_mid_word(seen):
    css = opened(seen, row(seen, kind="/handler"))
    names = [one.text for one in seen.driver.find_elements("css selector", css + " dt")]
    assert "properties[phone_number]" in names and "bindings[0][OWNER_TYPE_ID]" in names
    assert seen.run(BROKEN, css) == []


def test_no_secret_is_shown_in_rows_or_files(seen):
    seen.click("#folder-settings .file")
    seen.wait(lambda: "client_endpoint" in seen.text("#file-json"))
    seen.run("document.querySelectorAll('#wire .line').forEach((line) => line.click())")
    seen.wait(lambda: len(seen.driver.find_elements("css selector", "#wire .detail")) > 10)
    page, box = seen.run("return document.documentElement.textContent"), seen.world
    kept = (box.app.data / "settings.json").read_text("utf-8")
    secrets = [GOOD_KEY, box.portal.client_secret, box.portal.application_token,
               *box.oauth.tokens, *box.oauth.refresh, *re.findall(r'handler_key": "([^"]+)', kept)]
    seen.click("#file-close")
    assert "handler_key" in kept and [one for one in secrets if one in page] == [GOOD_KEY]
    assert page.count(GOOD_KEY) == 1, "but for the hint above the application"


def test_both_languages_have_each_text(seen):
    assert set(TEXTS["ru"]) == set(TEXTS["en"])
    assert not [text for text in TEXTS["ru"].values() if "коробк" in text.lower()]
    assert seen.driver.title == seen.text("h1") == seen.say("title")
