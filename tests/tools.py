"""The tools that some tests need beside Python: where they are on this machine, if it has them."""
import glob
import os
import shutil

DEBIAN = sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)  # not on the PATH there
PYENV = sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin")))
TOOLS = os.environ.get("TEST_TOOLS") or os.pathsep.join([os.environ["PATH"], *DEBIAN, *PYENV])
NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome", "chrome"),
         "postgresql": ("pg_ctl",)}


def find(tool):
    """The path of its program, None if it is missing. TEST_TOOLS: look in these folders only."""
    found = (shutil.which(name, path=TOOLS) for name in NAMES.get(tool, (tool,)))
    return next(filter(None, found), None)
