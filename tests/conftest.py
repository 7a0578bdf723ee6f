"""Fixtures: the world around the app, the app itself as a process, the app installed."""
import os
import sys

import pytest

sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

@pytest.fixture
def world():
    """A fresh portal, OAuth server and SMS.ru, without the app."""
    from portal import World
    world = World()
    try:
        yield world.start()
    finally:
        world.stop()


@pytest.fixture
def app(world):
    """The app as a process; passes run only when a test asks for one."""
    return world.start_app(RETRY_AFTER=1, STATUSES_EVERY=0)


@pytest.fixture
def installed(world, app):
    """The world with the app installed by an administrator through the stand-in browser."""
    from portal import install
    answer = install(world)
    assert answer.status_code == 200, answer.text
    return world
