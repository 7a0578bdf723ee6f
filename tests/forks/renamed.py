"""Proves that a fork stays green: python tests/forks/renamed.py [arguments of pytest]

Does to a copy what README's "Fork it" says, and what forks do besides: another code, name and
description, every text of views/texts.tpl, README's operator, some lines and files of its own. Then
runs the copy's tests, as on a machine with Python only. .ci/run does it after README's command: it
takes nearly as long as that.
"""
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEWS = {"SENDER_CODE": "acme.texts", "SENDER_NAME": "Texts by Acme", "SENDER_DESCRIPTION": "Acme's"}
OWN_LINES = "".join(f"OWN_{number} = {number}\n" for number in range(50))
OWN_FILES = {"LICENSE": "All rights reserved.\n", "Dockerfile": "FROM python:3.12-slim\n",
             "data/own/prices.csv": "to,price\n+7,2.50\n"}


def renamed(source):
    """app.py with another sender."""
    for name, text in NEWS.items():
        old = re.compile(rf'^({name} = (?:env\("{name}", )?)".*?"', re.MULTILINE)
        source, count = old.subn(lambda found, text=text: f'{found[1]}"{text}"', source)
        assert count == 1, name
    return source


def with_operator(source, operator):
    """app.py with README's operator, and lines of the fork's own."""
    before, table, after = re.split(r"^(OPERATORS = \{.*)\}$", source, flags=re.MULTILINE)
    return f'{before}{operator}\n\n{OWN_LINES}\n{table}, "acme": Acme}}{after}'


def retold(template):
    """texts.tpl with every letter of every text another one; what is in braces stays."""
    before, code, after = re.fullmatch(r"(<%\n)(.*)(\n%>\n*)", template, re.DOTALL).groups()
    tree = ast.parse(code)
    for pair in (one for one in ast.walk(tree) if isinstance(one, ast.Tuple)):
        for text in (one for one in pair.elts if isinstance(one, ast.Constant)):
            text.value = re.sub(r"\{\w+\}|[^\W\d_]", lambda found: (
                found[0] if found[0][0] == "{" else chr(ord(found[0]) ^ 1)), text.value)
    return before + ast.unparse(tree) + after


def fork(folder):
    """Make the copy, as somebody who has read README does."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "settings.json", "queue", "logs",
        "test_project.py"))
    operator = re.search(r"```python\n(class Acme.*?)```", (ROOT / "README.md").read_text("utf-8"),
                         re.DOTALL)[1]
    for name, change in (("app.py", renamed), ("app.py", lambda source: with_operator(
            source, operator)), ("views/texts.tpl", retold)):
        path = folder / name
        path.write_text(change(path.read_text("utf-8")), "utf-8")
    for name, text in OWN_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def main(*arguments):
    with tempfile.TemporaryDirectory(prefix="renamed-") as place:
        folder = Path(place, "fork")
        fork(folder)
        no_tools = Path(place, "no-tools")
        no_tools.mkdir()
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *(arguments or ["tests"])], cwd=folder,
            env={**os.environ, "TEST_TOOLS": str(no_tools), "CI": ""}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
