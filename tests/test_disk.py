"""A full disk: a limit on the size of files, which holds for root too."""
import pytest
from portal import install, until
from test_queue import (
    PHONE,
    make_due,
    one_pass,
    path_of,
    received,
    send,
    settled,
    stored,
    tried,
)

LAUNCHER = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
os.execv(sys.executable, [sys.executable, {script!r}, *sys.argv[1:]])
"""


@pytest.fixture
def full(world, tmp_path):
    """Makes an app in which no file may get bigger than so many bytes."""
    def make(limit, **env):
        app = world.new_app(RETRY_AFTER=60, STATUSES_EVERY=0, **env)
        launcher = tmp_path / "launcher.py"
        launcher.write_text(LAUNCHER.format(limit=limit, script=str(app.script)))
        app.script = launcher
        return app
    return make


@pytest.fixture
def roomy(world):
    """The app installed, with all the room it needs."""
    world.start_app(RETRY_AFTER=60, STATUSES_EVERY=0)
    assert install(world).status_code == 200
    return world


def history(world, message_id):
    return world.portal.messages[message_id]["history"]


def test_a_full_disk_gets_5xx_and_leaves_nothing_behind(world, full):
    world.app = app = full(16384).start()
    world.portal.app_url = app.url
    assert install(world).status_code == 200
    world.smsru.down = True
    small = send(world, "it fits")
    message_id, status = world.portal.send_message(PHONE, "x" * 20000)
    assert 500 <= status < 600
    assert list(stored(app)) == [small]
    assert not [one for one in (app.data / "queue").iterdir() if message_id in one.name]
    until(lambda: not list((app.data / "queue").glob("*.tmp")))
    after = send(world, "it fits again")
    assert set(stored(app)) == {small, after}


def test_a_message_that_cannot_be_recorded_as_sent_is_tried_once_more_never_more_often(roomy, full):
    roomy.smsru.down = True
    message_id = send(roomy, "again and again?")
    tried(roomy.app, message_id)
    roomy.app.kill()
    roomy.smsru.down = False
    make_due(roomy.app)
    for _ in range(5):
        assert full(20, DATA_DIR=roomy.app.data).run("statuses")[0] == 1
    assert received(roomy, "again and again?") == 2
    roomy.app.start()
    one_pass(roomy)
    one_pass(roomy)
    assert history(roomy, message_id) == ["sent", "failed"]
    assert received(roomy, "again and again?") == 2


def test_what_is_final_is_reported_though_sending_meets_a_full_disk(roomy, full):
    roomy.smsru.delay = 0
    done = send(roomy, "delivered")
    settled(roomy.app, done)
    roomy.smsru.down = True
    waits = send(roomy, "waits")
    tried(roomy.app, waits)
    roomy.smsru.down = False
    make_due(roomy.app)
    full(20, DATA_DIR=roomy.app.data).run("statuses")
    assert history(roomy, done) == ["sent", "delivered"]
    assert not path_of(roomy.app, done).exists()
    assert path_of(roomy.app, waits).exists()


def test_tokens_are_not_renewed_when_the_new_ones_could_not_be_kept(roomy, full):
    roomy.smsru.delay = 0
    message_id = send(roomy, "delivered")
    settled(roomy.app, message_id)
    roomy.portal.expire_tokens()
    assert full(20, DATA_DIR=roomy.app.data).run("statuses")[0] == 1
    make_due(roomy.app)
    assert one_pass(roomy)["errors"] == {}
    assert history(roomy, message_id) == ["sent", "delivered"]
