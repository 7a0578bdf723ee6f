"""The tools that some tests need beside Python: where they are on this machine, if it has them."""
import glob
import os
import shutil

BESIDE = [folder for place in (  # what is often here, but not on the PATH
    "~/.pyenv/versions/*/bin", "~/.local/share/uv/python/*/bin", "/usr/lib/postgresql/*/bin")
    for folder in sorted(glob.glob(os.path.expanduser(place)), reverse=True)]
TOOLS = os.environ.get("TEST_TOOLS") or os.pathsep.join([*BESIDE, os.environ["PATH"]])
NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome", "chrome"),
         "postgresql": ("pg_ctl",)}


def find(tool):
    """The path of its program, None if it is missing. TEST_TOOLS: look in these folders only."""
    found = (shutil.which(name, path=TOOLS) for name in NAMES.get(tool, (tool,)))
    return next(filter(None, found), None)
