"""settings.json: changed by one at a time, under the lock, and by one user only."""
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor, TimeoutError

import pytest
from pretend import GOOD_KEY, Browser
from steps import installed_app, one_pass


@pytest.fixture
def world(world):
    installed_app(world)
    return world


def save(world):
    browser = Browser(world)
    browser.open("index")
    return browser.save(api_key=GOOD_KEY).status_code


def make_a_pass(world):
    assert "note" not in one_pass(world)
    return 200


def uninstall(world):
    return world.portal.fire("ONAPPUNINSTALL")


@pytest.mark.parametrize("change", [save, make_a_pass, uninstall])
def test_whoever_changes_the_settings_waits_for_their_lock(world, change):
    path = world.app.data / "settings.json"
    before = path.read_bytes()
    with ThreadPoolExecutor(1) as pool:
        with open(world.app.data / "settings.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            changing = pool.submit(change, world)
            with pytest.raises(TimeoutError):
                changing.result(0.5)
            assert path.read_bytes() == before
        assert changing.result(10) == 200
    assert path.read_bytes() != before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_pass_by_another_user_is_refused_before_its_files_lock_the_app_out(world):
    path = world.app.data / "settings.json"
    os.chown(path, 65534, 65534)
    try:
        assert world.app.run("statuses")[0] == 1
        assert "another user's" in world.app.output()
        assert path.stat().st_uid == 65534
    finally:
        os.chown(path, 0, 0)
