"""The emulator against a client that is not ours: the npm package @bitrix24/b24jssdk in the frame.

Only here is npm needed. The package is fetched into memory's throw-away folder, its UMD build is
served by a small application of this test's own; nothing of it runs outside the browser.
"""
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
import tools
from pretend import Box, Party
from pretend.tab import Tab

pytestmark = pytest.mark.needs("npm")
PACKAGE = "@bitrix24/b24jssdk@2"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A foreign application</title>
<link rel="icon" href="data:,">
<p id="said"></p><button id="ask">profile</button><button id="finish">finish</button>
<script src="b24jssdk.js"></script><script>
const say = (what) => { document.getElementById('said').textContent = JSON.stringify(what); };
const fail = (error) => say({ error: String(error) });
async function start() {
  const b24 = await B24Js.initializeB24Frame();
  document.getElementById('ask').onclick = () => ask(b24).catch(fail);
  document.getElementById('finish').onclick = () => b24.installFinish().catch(fail);
  await b24.parent.setTitle('A foreign application');
  await b24.parent.fitWindow();
  await ask(b24);
}
async function ask(b24) {
  const answer = await b24.actions.v2.call.make({ method: 'profile', params: {} });
  say({ profile: answer.getData().result, lang: b24.getLang(), admin: b24.auth.isAdmin,
        install: b24.isInstallMode, token: b24.auth.getAuthData().access_token });
}
start().catch(fail);
</script></html>"""


class Foreign(Party):
    """An application that knows nothing of ours: one page, one script."""

    name = "app"

    def __init__(self, wire, script):
        super().__init__(wire)
        self.script = script

    def noted(self, method, path):
        return not path.endswith(".js")

    def answer(self, method, path, fields, request):
        if path == "/b24jssdk.js":
            return 200, self.script, {"Content-Type": "application/javascript; charset=utf-8"}
        return 200, PAGE, {}


@pytest.fixture(scope="module")
def umd(tmp_path_factory):
    """The UMD build, taken out of the package as npm fetches it."""
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run([tools.find("npm"), "pack", PACKAGE, "--silent", "--pack-destination",
                           str(folder)],
                          cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"npm could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}"
    archive = next(Path(folder).glob("*.tgz")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        about = json.load(package.extractfile("package/package.json"))
        return package.extractfile("package/" + about["unpkg"].lstrip("./")).read()


@pytest.fixture
def foreign(world, umd):
    """The box's page with that application in the place of ours."""
    party = Foreign(world.wire, umd).start()
    world.box = Box(world)
    world.portal.app_url = party.url + "/"
    yield party
    party.stop()


def said(tab):
    """What the application's page shows once it has something to show."""
    return json.loads(tab.wait(lambda: tab.in_frame(lambda: tab.text("#said"))))


def test_the_sdk_initialises_calls_and_finishes_the_installation(chrome, world, foreign):
    tab = Tab(chrome, world.portal.url).open("ru")
    first = said(tab)
    assert first["profile"]["ADMIN"] is True
    assert (first["lang"], first["admin"], first["install"]) == ("ru", True, True)
    assert world.portal.installed is False
    tab.in_frame(lambda: tab.click("#finish"))
    tab.wait(lambda: world.portal.installed)
    tab.wait(lambda: "/index" in [path for path, _ in foreign.requests])
    tab.wait(lambda: said(tab)["install"] is False)


def test_the_sdk_cannot_finish_the_installation_for_an_employee(chrome, world, foreign):
    tab = Tab(chrome, world.portal.url).open("en")
    tab.click("#user-employee")
    tab.wait(lambda: said(tab)["admin"] is False)
    tab.in_frame(lambda: tab.click("#finish"))
    tab.wait(lambda: "administrator" in tab.text("#note"))
    assert world.portal.installed is False


def test_the_sdk_renews_its_token_through_the_portals_page(chrome, world, foreign):
    tab = Tab(chrome, world.portal.url).open("en")
    first = said(tab)
    world.portal.expire_tokens()
    tab.in_frame(lambda: tab.click("#ask"))
    tab.wait(lambda: said(tab).get("token") != first["token"])
    assert said(tab)["profile"] == first["profile"]
