"""Try the app without a Bitrix24 account: python tests/portal.py [--once] [--open] [--port N]

Starts a pretend portal, a pretend OAuth server and a pretend SMS.ru, and the app beside them as
users start it; then says where to open the portal's page, and everything else is clicked there.
With --once it plays the tutorial's story without a browser, prints what went over the wire, and
ends: 0 if the story came true, 1 if not.
"""
import argparse
import os
import signal
import sys
import threading
import webbrowser

from pretend import Story, World


def goodbye(signum, frame):
    raise KeyboardInterrupt


def in_colour():
    """Colours are for a terminal, and for people who want them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def play_once(world):
    """Start the app and play the story; the exit code."""
    app = world.start_app(STATUSES_EVERY=1, RETRY_AFTER=1)
    print(f"Portal {world.portal.url}  OAuth {world.oauth.url}  SMS.ru {world.smsru.url}\n"
          f"App {app.url}\nIts data, gone at the end: {app.data}")
    came_true = Story(world, in_colour()).play()
    if came_true:
        print("Next, click it yourself: .venv/bin/python tests/portal.py --open")
    return 0 if came_true else 1


def stay_up(world, chosen):
    """Start the app, not installed yet; the rest is clicked, until Ctrl-C or SIGTERM."""
    world.start_box(**{"SMS_OPERATOR": chosen.operator, **dict(chosen.env)})
    world.smsru.slow = 0.4  # seconds, so that a file can be seen in queue/sending
    print(f"Open {world.portal.url}/ in a browser (or use --open): "
          "a pretend Bitrix24, the app in it.\n"
          f"Ctrl-C ends everything, and its data in {world.app.data} go.")
    if chosen.open:
        webbrowser.open(world.portal.url + "/")
    threading.Event().wait()


def variable(text):
    """NAME=VALUE for the app's environment, as a pair."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main(arguments=None):
    """Stay up with the portal's page, or play the story when told --once."""
    options = argparse.ArgumentParser(description="Try the app on a pretend Bitrix24.")
    options.add_argument("--once", action="store_true",
                         help="play the story without a browser and end: 0 or 1")
    options.add_argument("--port", type=int, default=0, help="the pretend portal's port")
    options.add_argument("--operator", default="smsru",
                         help="the app's SMS_OPERATOR, instead of smsru and the pretend SMS.ru")
    options.add_argument("--env", type=variable, action="append", default=[],
                         metavar="NAME=VALUE", help="a variable of the app's, such as a fork's own")
    options.add_argument("--open", action="store_true", help="open the page in your browser")
    chosen = options.parse_args(arguments)
    if chosen.once and chosen.operator != "smsru":
        options.error("--once plays a story with SMS.ru; leave out --once to try an operator")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    # A shell's "&" would have SIGINT ignored; SIGHUP comes when the terminal is closed
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, goodbye)
    world = World(chosen.port)
    try:
        world.start()
        return play_once(world) if chosen.once else stay_up(world, chosen)
    except (OSError, AssertionError) as error:
        print(f"It could not start: {error}")
        return 1
    except KeyboardInterrupt:
        print("\nStopping.")
        return 0
    finally:
        world.stop()


if __name__ == "__main__":
    sys.exit(main())
