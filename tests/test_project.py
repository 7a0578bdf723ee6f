"""What is only ours, and may go in a fork: this README, six names, the budget of app.py.

A fork deletes this file; every other test holds for it as well.
"""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tools

ROOT = Path(__file__).resolve().parent.parent
DATA = (ROOT / "data" / "README.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
SOURCE = (ROOT / "app.py").read_text("utf-8")
TREE = ast.parse(SOURCE)
FIRST_SCREEN = README.split("\n## ")[0]
COMMANDS = re.findall(r"^```sh\n(.*)\n```$", FIRST_SCREEN, re.MULTILINE)
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
CEILING = 1107  # lines of app.py

# Takes the place of python3, apt-get and browser: notes how it was called, makes a .venv of
# itself when asked for one, and fails as failing tests do.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $* CI=$CI" >>"$NOTES"
case "$*" in
*"-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"
    for name in pip python; do cp "$0" "$folder/bin/$name"; done ;;
*"-m pytest"*) exit 7 ;;
esac
"""


def section(title):
    """The README's text under the heading `## title`."""
    return re.search(rf"^## {title}.*?\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def rows(title):
    """The cells of the section's tables, without their heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in lines if not line.startswith("|--")][1:]


def codes(text):
    return re.findall(r"`([^`]+)`", text)


# ---- Commands ------------------------------------------------------------------------------------
def run(command, folder, stand_in=STAND_IN, **env):
    """Run a command among stand-ins: (exit code, how they were called, in order)."""
    (folder / "bin").mkdir()
    for name in ("python3", "apt-get", "chromium", "chromedriver", "npm", "pg_ctl"):
        (folder / "bin" / name).write_text(stand_in)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=str(folder), capture_output=True, check=False,
                          env={"PATH": path, "NOTES": str(folder / "notes"), **env})
    return done.returncode, (folder / "notes").read_text().splitlines()


def test_the_first_screen_has_two_commands_of_one_line_each():
    assert len(COMMANDS) == 2
    assert FIRST_SCREEN.count("```") == 4
    assert len(FIRST_SCREEN.splitlines()) <= 30


@pytest.mark.parametrize("number, added, last", [
    (0, "", "python tests/portal.py"),
    (0, " --once", "python tests/portal.py --once"),
    (1, "", "python -m pytest -q tests"),
])
def test_each_command_works_in_a_fresh_clone_on_its_own(tmp_path, number, added, last):
    _, calls = run(["sh", "-c", COMMANDS[number] + added], tmp_path, CI="")
    assert calls[0] == "python3 -m venv .venv CI="
    assert calls[1].startswith("pip install -q -r requirements.txt ")
    assert ("-r tests/requirements.txt" in calls[1]) == (number == 1)
    assert calls[2:] == [last + " CI="]


@pytest.mark.parametrize("given, seen", [({}, "true"), ({"CI": "no"}, "no")])
def test_ci_runs_exactly_the_test_command(tmp_path, given, seen):
    for name in ("readme", "ci"):
        (tmp_path / name).mkdir()
    shutil.copytree(ROOT / ".ci", tmp_path / "ci" / ".ci")
    shutil.copy(ROOT / "README.md", tmp_path / "ci")
    told, told_calls = run(["sh", "-c", COMMANDS[1]], tmp_path / "readme", CI=seen)
    done, done_calls = run([".ci/run"], tmp_path / "ci", **given)
    assert (done, done_calls[-len(told_calls):]) == (told, told_calls)
    assert not [call for call in done_calls if call.startswith("apt-get")], "nothing was missing"


def test_ci_then_runs_the_tests_in_a_fork(tmp_path):
    """Not after tests that fail, as those of the test above."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "README.md", tmp_path)
    code, calls = run([".ci/run"], tmp_path, STAND_IN.replace("exit 7", "exit 0"))
    assert (code, calls[-1]) == (0, "python tests/forks/renamed.py CI=true")


def test_ci_installs_what_is_missing_before_the_command(tmp_path):
    """Here the venv module does not work, but the browser is there."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "README.md").write_text("```sh\npython3 tests\n```\n\n## More\n")
    broken = STAND_IN.replace("for folder;", "exit 1; for folder;")
    _, calls = run([".ci/run"], tmp_path, broken)
    assert [call.split()[0] for call in calls] == ["python3", "apt-get", "apt-get", "python3"]
    assert calls[2].endswith(" python3-venv CI=true")
    assert calls[3] == "python3 tests CI=true"


@pytest.mark.needs("systemd-analyze", optional=True)
def test_systemd_understands_the_unit(tmp_path):
    """In a folder of ours, as systemd looks for the program; containers often have no systemd."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    unit = re.search(r"^```ini\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "sms.service").write_text(unit.replace("/srv/sms", str(tmp_path)))
    done = subprocess.run([tools.find("systemd-analyze"), "verify", tmp_path / "sms.service"],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_ruff_has_nothing_to_say():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", ROOT],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- Lists ---------------------------------------------------------------------------------------
def routes():
    """The routes of app.py: {(method, path, function)}."""
    found = set()
    for function in (node for node in TREE.body if isinstance(node, ast.FunctionDef)):
        for call in (one for one in function.decorator_list if isinstance(one, ast.Call)):
            if getattr(call.func, "attr", "") in ("get", "post", "route"):
                given = call.args[1:] + [word.value for word in call.keywords]
                methods = [ast.literal_eval(one) for one in given] or [call.func.attr.upper()]
                methods = methods[0] if isinstance(methods[0], (list, tuple)) else methods
                path = ast.literal_eval(call.args[0])
                found |= {(method.replace("ROUTE", "GET"), path, function.name)
                          for method in methods}
    return found


def test_the_map_has_every_route_and_no_other():
    told = set()
    for row in rows("Map"):
        for method, path in re.findall(r"`(GET|POST) (/\w*)", row[1]):
            told.add((method, path, codes(row[2])[0].replace("()", "")))
    assert told == routes()


def test_the_variables_it_names_are_read_with_the_defaults_it_names():
    read = {call.args[0].value: ast.unparse(call.args[1]) if len(call.args) > 1 else "—"
            for call in ast.walk(TREE) if isinstance(call, ast.Call)
            and getattr(call.func, "id", "") == "env" and isinstance(call.args[0], ast.Constant)}
    told = set(re.findall(r"`([A-Z_]{5,})`", section("What to set")))
    assert len(told) == 5 and told <= set(read)
    for name, default in re.findall(r"`([A-Z_]+)` \(default\s`([^`]+)`", section("What to set")):
        assert default in (read[name].strip("'"), "data/"), name


def holders(remark):
    """The functions, classes or constants of app.py that hold a remark: [names, names...]."""
    nodes = [node for node in ast.walk(TREE) if isinstance(node, DEFINITIONS + (ast.Assign,))]
    found, legend = [], TREE.body[0].end_lineno
    for number, line in enumerate(SOURCE.splitlines(), 1):
        if remark in line and number > legend:
            around = [node for node in nodes if isinstance(node, DEFINITIONS)
                      and node.lineno <= number <= node.end_lineno]
            after = [node for node in nodes if node.lineno > number]
            node = (max(around, key=lambda one: one.lineno) if around
                    else min(after, key=lambda one: one.lineno))
            found.append({node.name} if isinstance(node, DEFINITIONS) else
                         {one.id for one in ast.walk(node) if isinstance(one, ast.Name)
                          and isinstance(one.ctx, ast.Store)})
    return found


def test_differs_from_php_is_the_list_of_the_marks_in_app_py():
    told = {codes(row[0])[0] for row in rows("Differs from PHP")}
    assert {name for names in holders("Differs from PHP") for name in names} == told


@pytest.mark.parametrize("name", ["SENDER_CODE", "CRest", "locked", "Queue", "Demo", "one_pass"])
def test_what_a_fork_replaces_is_marked_in_app_py(name):
    found = set().union(*holders("Replace me"))
    assert name in found or name in {"CRest"} and "get_setting_data" in found


def answered():
    """The error codes that app.py's refusals begin with, in the code's own words."""
    return set(re.findall(r'"([A-Z]+_[A-Z_]+): ', SOURCE)) | {"OAUTH_SERVER", "PORTAL"}


def test_the_error_codes_are_all_told_and_no_other():
    table = DATA.split("## Errors")[1]
    told = set(re.findall(r"`([A-Z]+_[A-Z_]+|PORTAL)`", table)) - {"PUBLIC_URL", "C_REST_CLIENT_SECRET"}
    assert told - {"PORTAL"} == answered() - {"PORTAL"}


def test_every_outcome_is_told():
    table = next(node.value for node in TREE.body if isinstance(node, ast.Assign)
                 and getattr(node.targets[0], "id", "") == "OUTCOMES")
    told = DATA.split("## What the operator's words mean")[1].split("##")[0]
    rows_of_words = [line.split("|")[1] for line in told.splitlines() if line.startswith("| `")]
    assert {key.value for key in table.keys} == set(codes(" ".join(rows_of_words))) - {"outcome"}


@pytest.mark.parametrize("text", ["README.md", "data/README.md", "tests/README.md"])
def test_every_link_leads_somewhere(text):
    page = (ROOT / text).read_text("utf-8")
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]*)\)", page):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert ((ROOT / text).parent / link).exists(), link


def test_the_readme_is_short_and_ends_with_its_licence():
    lines = README.splitlines()
    assert len(lines) <= 200
    inside = [line for line in lines if not line.startswith(("|", "python3 "))]
    assert [line for line in inside if len(line) > 100] == []
    assert section("MIT License").startswith("Copyright (c) 2026 the authors\n")
    assert " ".join(README.split()).endswith("THE USE OR OTHER DEALINGS IN THE SOFTWARE.")


# ---- The budget ----------------------------------------------------------------------------------
def functions(tree):
    return [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_the_top_level_shows_six_names():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert names - {"__pycache__"} == {
        "app.py", "views", "data", "tests", "requirements.txt", "README.md"}


def test_app_py_does_not_grow():
    """850 was the aim and is missed: what keeps the promises takes this many lines, and no more."""
    lines = SOURCE.splitlines()
    assert len(lines) <= CEILING
    assert [number for number, line in enumerate(lines, 1) if len(line) > 100] == []
    assert len([line for line in lines if len(line) > 90]) <= 60


def test_the_functions_of_app_py_are_short():
    found = functions(TREE)
    assert {one.name: length(one) for one in found if length(one) > 30} == {}
    assert sum(map(length, found)) / len(found) <= 14
    assert next(one.lineno for one in found if one.name == "checkserver") < 370


def test_a_fifth_of_app_py_says_why():
    documented = [node for node in ast.walk(TREE) if isinstance(node, (*DEFINITIONS, ast.Module))
                  and ast.get_docstring(node)]
    words = sum(length(node.body[0]) for node in documented)
    words += sum(line.lstrip().startswith("#") for line in SOURCE.splitlines())
    assert 0.2 <= words / len(SOURCE.splitlines()) <= 0.3


def test_every_other_file_has_at_most_500_lines():
    files = [path for path in ROOT.rglob("*") if path.suffix in (".py", ".js", ".tpl", ".css", ".html")
             and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    long = {str(path): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {path: lines for path, lines in long.items()
            if lines > 500 and path != str(ROOT / "app.py")} == {}
