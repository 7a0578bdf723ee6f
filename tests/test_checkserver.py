"""checkserver.php: can this server run the application? On the page and on the command line."""
import subprocess
import sys

import pytest
import requests
from pretend import install


def ask(app, **query):
    return requests.get(app.url + "checkserver", params=query, timeout=10)


def test_a_good_server_has_nothing_to_mend_and_nothing_is_left_behind(world):
    app = world.new_app()
    code, output = app.run("checkserver")
    assert code == 0
    assert output.strip()
    assert [path.name for path in app.data.rglob("*") if path.is_file()] == ["app.log"]
    assert (app.data / "logs" / "app.log").read_text("utf-8") == ""


def test_once_installed_the_page_wants_the_key(world, app):
    assert (ask(app).status_code, ask(app).json()) == (200, {"result": []})
    key = install(world).json()["sender"]["HANDLER"].partition("key=")[2]
    for query in ({}, {"key": ""}, {"key": key[:-1]}, {"key": key + "a"}, {"key": "ключ"}):
        answer = ask(app, **query)
        assert (answer.status_code, answer.json()["error"]) == (403, "WRONG_KEY"), query
    assert (ask(app, key=key).status_code, ask(app, key=key).json()) == (200, {"result": []})


def spoil_data_dir(app):
    """A file where the folder should be: not even root can write there."""
    app.env["DATA_DIR"] = str(app.home) + "/file/data"
    with open(app.home + "/file", "w", encoding="utf-8") as file:
        file.write("in the way")


def variable(name, value):
    def spoil(app):
        app.env.pop(name, None)
        if value:
            app.env[name] = value
    return spoil


@pytest.mark.parametrize(("spoil", "named"), [
    (variable("C_REST_CLIENT_ID", None), "C_REST_CLIENT_ID"),
    (variable("C_REST_CLIENT_SECRET", None), "C_REST_CLIENT_SECRET"),
    (variable("PUBLIC_URL", "http://mydomain.ru/sms/"), "PUBLIC_URL"),
    (variable("OAUTH_URL", "http://oauth.bitrix24.tech"), "OAUTH_URL"),
    (variable("SMSRU_URL", "http://sms.ru"), "SMSRU_URL"),
    (spoil_data_dir, "DATA_DIR"),
])
def test_what_to_mend_is_named_without_paths_and_versions(world, spoil, named):
    app = world.new_app(STATUSES_EVERY=0)
    spoil(app)
    code, output = app.run("checkserver")
    assert code == 1
    assert named in output
    assert app.home not in output + app.output()
    assert "Traceback" not in app.output()
    assert sys.version.split()[0] not in output
    app.start()
    assert named in app.output(), "the start says it as well"
    assert any(named in line for line in ask(app).json()["result"])


def test_damaged_settings_are_named_too(world):
    app = world.new_app()
    app.data.mkdir()
    (app.data / "settings.json").touch()
    code, output = app.run("checkserver")
    assert (code, "settings.json" in output) == (1, True)
    assert "Traceback" not in app.output()


@pytest.mark.parametrize("url", [
    "https://localhost:9/sms/", "https://127.0.0.1:9", "http://127.0.0.1:9/sms/"])
def test_a_good_public_url_is_not_complained_about(world, url):
    code, output = world.new_app(PUBLIC_URL=url).run("checkserver")
    assert (code, "must begin" in output) == (0, False)


def test_start_and_command_say_what_to_enter_in_the_card(world):
    app = world.new_app(PUBLIC_URL="https://localhost:9/sms/", STATUSES_EVERY=0)
    _, output = app.run("checkserver")
    for said in (output, app.start().output()):
        assert "handler path https://localhost:9/sms/index" in said
        assert "installation path https://localhost:9/sms/install" in said
        assert "messageservice" in said


@pytest.mark.parametrize("installed_first", [False, True])
def test_the_command_asks_whether_the_public_url_leads_here(world, installed_first):
    app = world.start_app(STATUSES_EVERY=0)
    if installed_first:
        assert install(world).status_code == 200
    app.env["PUBLIC_URL"] = app.url
    assert "PUBLIC_URL leads to this application" in app.run("checkserver")[1]
    app.env["PUBLIC_URL"] = world.smsru.url  # somebody else's
    assert "PUBLIC_URL does not lead" in app.run("checkserver")[1]
    app.stop()
    app.env["PUBLIC_URL"] = app.url
    assert "PUBLIC_URL does not lead" in app.run("checkserver")[1]


def test_another_installation_at_the_public_url_is_not_taken_for_this_one(world):
    app, another = world.start_app(STATUSES_EVERY=0), world.new_app()
    assert install(world).status_code == 200
    another.env["PUBLIC_URL"] = app.url
    assert "PUBLIC_URL does not lead" in another.run("checkserver")[1]


@pytest.mark.parametrize("command, code", [("--help", 0), ("help", 1)])
def test_help_is_the_map_and_a_mistyped_command_gets_it_too(world, command, code):
    app = world.new_app()
    done, output = app.run(command)
    assert done == code
    assert "python app.py [statuses | checkserver | --help]" in output
    assert "POST /handler" in output


def test_it_really_writes(world):
    app = world.new_app()
    limited = subprocess.run(  # a full disk: no file may grow beyond nothing
        ["/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, str(app.script),
         "checkserver"], env=app.env, capture_output=True, timeout=30, check=False)
    assert limited.returncode == 1
    assert b"DATA_DIR" in limited.stdout
    assert b"Traceback" not in limited.stderr
    assert app.home.encode() not in limited.stdout + limited.stderr
