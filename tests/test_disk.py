"""A full disk: a limit on the size of files, which holds for root too."""
import pytest
from pretend import install, until
from steps import (
    PHONE,
    code_of,
    folder_of,
    history,
    make_due,
    one_pass,
    outcomes,
    path_of,
    read,
    received,
    rested,
    send,
    settled,
    stored,
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


def test_a_full_disk_gets_5xx_and_leaves_nothing_behind(world, full):
    world.app = app = full(16384).start()
    world.portal.app_url = app.url
    assert install(world).status_code == 200
    world.smsru.down = True
    small = send(world, "it fits")
    message_id, status = world.portal.send_message(PHONE, "x" * 20000, code=code_of(world))
    assert 500 <= status < 600
    assert list(stored(app)) == [small]
    assert not list((app.data / "queue").rglob(f"*{message_id}*"))
    until(lambda: not list(app.data.glob("*.tmp")), message="something half written is left")
    after = send(world, "it fits again")
    assert set(stored(app)) == {small, after}


def waits(world, text):
    """A message that waits, due now, though the operator is well."""
    world.smsru.down = True
    message_id = send(world, text)
    rested(world.app)
    world.smsru.down = False
    make_due(world.app)
    return message_id


def test_a_message_that_cannot_be_recorded_as_sent_is_tried_once_more_never_more_often(roomy, full):
    """Its number and text are kept, and it is in doubt, as after a kill."""
    message_id = waits(roomy, "again and again?")
    before = read(roomy.app, message_id)
    for _ in range(4):
        assert full(20, DATA_DIR=roomy.app.data).run("statuses")[0] == 1
    assert received(roomy, "again and again?") == 1
    assert folder_of(roomy.app, message_id) == "sending"
    assert read(roomy.app, message_id) == before
    roomy.smsru.delay = 0
    for _ in range(4):
        one_pass(roomy)
        make_due(roomy.app)
    assert outcomes(roomy.app, message_id)[-2:] == ["in doubt", "sent"]
    assert received(roomy, "again and again?") == 2
    assert history(roomy, message_id) == ["sent", "delivered"]


def test_what_is_final_is_reported_though_sending_meets_a_full_disk(roomy, full):
    roomy.smsru.delay = 0
    done = send(roomy, "delivered")
    settled(roomy.app, done)
    waiting = waits(roomy, "waits")
    full(20, DATA_DIR=roomy.app.data).run("statuses")
    assert history(roomy, done) == ["sent", "delivered"]
    assert not path_of(roomy.app, done, "sent").exists()
    assert folder_of(roomy.app, waiting)


def test_tokens_are_not_renewed_when_the_new_ones_could_not_be_kept(roomy, full):
    roomy.smsru.delay = 0
    message_id = send(roomy, "delivered")
    settled(roomy.app, message_id)
    roomy.portal.expire_tokens()
    assert full(20, DATA_DIR=roomy.app.data).run("statuses")[0] == 1
    make_due(roomy.app)
    assert one_pass(roomy)["errors"] == {}
    assert history(roomy, message_id) == ["sent", "delivered"]
