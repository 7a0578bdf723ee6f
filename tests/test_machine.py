"""Any machine: the tests that need a tool which is not here are skipped; every Python will do."""
import os
import re
import subprocess
import sys

import pytest
import tools
from pretend import ROOT

WAITING = {"npm": "test_sdk.py", "chromium": "test_browser.py",  # in which file tests wait for it
           "postgresql": "forks/test_many_portals.py"}


def run_without(missing, folder, **env):
    """Run those files' tests on a machine that lacks these: (exit code, {tool: tests skipped})."""
    for tool in {*WAITING, "chromedriver", "initdb"} - {*missing}:
        if tools.find(tool):
            (folder / os.path.basename(tools.find(tool))).symlink_to(tools.find(tool))
    files = [str(ROOT / "tests" / WAITING[tool]) for tool in missing]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(folder), "TEST_TOOLS": str(folder), "CI": "", **env})
    lines = re.findall(r"^SKIPPED \[(\d+)\] .*: (\S+) is missing$", done.stdout, re.MULTILINE)
    assert len(lines) == len(dict(lines)), done.stdout
    return done.returncode, {tool: int(count) for count, tool in lines}


@pytest.mark.parametrize("missing", [[*WAITING], *([tool] for tool in WAITING)], ids="+".join)
def test_what_needs_a_missing_tool_is_skipped_in_one_line_a_tool(tmp_path, missing):
    code, skipped = run_without(missing, tmp_path)
    assert code == 0
    assert set(skipped) == set(missing)
    assert min(skipped.values()) > 1


def test_on_a_build_server_a_missing_tool_fails_the_run(tmp_path):
    assert run_without([*WAITING], tmp_path, CI="true") == (1, {})


PYTHONS = [f"python3.{minor}" for minor in range(9, 15)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with what the app needs, as the oldest Python at hand, so that each can read it."""
    folder = tmp_path_factory.mktemp("packages")
    oldest = next(filter(None, map(tools.find, PYTHONS)))
    subprocess.run([sys.executable, "-m", "pip", "--python", oldest, "install", "-q", "--target",
                    folder, "--disable-pip-version-check", "-r", ROOT / "requirements.txt"],
                   check=True)
    return folder


@pytest.mark.parametrize("python", [
    pytest.param(one, marks=pytest.mark.needs(one, optional=True)) for one in PYTHONS])
def test_the_story_comes_true_under_every_python_at_hand(packages, tmp_path, python):
    """Also a build server has what it has: which of them it lacks is no mistake of ours."""
    subprocess.run([tools.find(python), "-m", "venv", "--without-pip", tmp_path], check=True)
    place, = tmp_path.glob("lib/python*/site-packages")
    (place / "packages.pth").write_text(str(packages))
    done = subprocess.run([tmp_path / "bin" / "python", ROOT / "tests" / "portal.py", "--once"],
                          capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The story came true." in done.stdout
