"""Fixtures: the world around the app, the app itself as a process, the app installed."""
import os
import sys
import threading

import pytest
import tools

sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
CHROMIUM_FLAGS = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                  "--disable-background-networking", "--window-size=1280,800"]
if hasattr(os, "geteuid") and os.geteuid() == 0:
    CHROMIUM_FLAGS.append("--no-sandbox")  # root may not have one


def pytest_runtest_setup(item):
    """Skipped here, so that -rs has one line a tool, with the number of tests that wait for it.

    A build server has everything, so there it is an error; except what it may lack, too.
    """
    wanted = [mark for mark in item.iter_markers("needs")]
    if "chromium" in item.fixturenames:
        wanted.append(pytest.mark.needs("chromium"))
    for mark in wanted:
        tool, = mark.args
        if not tools.find(tool):
            optional = mark.kwargs.get("optional") or os.environ.get("CI") != "true"
            give_up = pytest.skip if optional else pytest.fail
            give_up(f"{tool} is missing")


@pytest.fixture
def world():
    """A fresh portal, OAuth server and SMS.ru, without the app."""
    from pretend import World
    with World() as world:
        yield world


@pytest.fixture
def app(world):
    """The app as a process; passes run only when a test asks for one."""
    return world.start_app(RETRY_AFTER=1, STATUSES_EVERY=0)


@pytest.fixture
def installed(world, app):
    """The world with the app installed by an administrator through the stand-in browser."""
    from pretend import install
    answer = install(world)
    assert answer.status_code == 200, answer.text
    return world


@pytest.fixture(scope="session")
def started():
    """Gives out installed worlds, one for each RETRY_AFTER: to start one for each test is slow."""
    from pretend import World
    from steps import installed_app
    worlds = {}

    def world(retry_after):
        if retry_after not in worlds:
            worlds[retry_after] = World().start()
            installed_app(worlds[retry_after], RETRY_AFTER=retry_after)
        return worlds[retry_after]
    yield world
    for one in worlds.values():
        one.stop()


@pytest.fixture
def shared(request, started):
    """An installed world that others have used, good as new; its file says with which RETRY_AFTER.

    No trouble, an empty queue and log, what is sent arrives at once.
    """
    from steps import fresh
    world = fresh(started(request.module.RETRY_AFTER))
    yield world
    for app in [one for one in world.apps if one is not world.app]:
        app.close()
    if not world.app.running:
        world.app.start()
    fresh(world)


@pytest.fixture
def blank(request, started):
    """The same before its installation."""
    from steps import reset
    return reset(started(request.module.RETRY_AFTER))


@pytest.fixture(scope="session")
def chromium():
    """One real browser for the whole session: its start is slow."""
    from selenium import webdriver
    os.environ["SE_AVOID_STATS"] = "true"
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in CHROMIUM_FLAGS:
        options.add_argument(flag)
    options.binary_location, driver = tools.find("chromium"), tools.find("chromedriver")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(30)
    yield browser
    browser.quit()


@pytest.fixture
def chrome(chromium):
    """The browser, its window as new; a script error on any page fails the test that caused it."""
    chromium.get_log("browser")
    yield chromium
    trouble = [line["message"] for line in chromium.get_log("browser")
               if line["level"] == "SEVERE" and "Failed to load resource" not in line["message"]]
    chromium.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.get("about:blank")
    assert trouble == []


@pytest.fixture
def box(world):
    """Bitrix24 in a box, its app not installed, everything quicker than a person would want it."""
    world.start_box(STATUSES_EVERY=0.4, RETRY_AFTER=0.01)
    world.smsru.delay = 0.3
    return world.box


@pytest.fixture
def tab(chrome, box):
    """A browser's tab beside a box whose app is not installed yet."""
    from pretend.tab import Tab
    return Tab(chrome, box.portal.url)


@pytest.fixture
def ready(tab, box):
    """The same, the app installed already and its settings page open."""
    from pretend import install
    assert install(box.world).status_code == 200
    tab.open().page("index")
    return tab


@pytest.fixture
def hold():
    """hold(party, path): that request waits for the end of the test, or for hold.end."""
    def answer(party, place):
        party.trouble = lambda method, path, fields: (
            hold.end.wait(20) and None if path == place else None)
    hold, answer.end = answer, threading.Event()
    yield hold
    hold.end.set()
