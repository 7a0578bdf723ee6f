"""Files or a database? python tests/measure/bench_stores.py

The handler and a pass on both stores of the seam, app.py's files and many_portals.py's PostgreSQL,
in turn, on this machine; the median of five rounds. PostgreSQL is found as the tests find it: a
cluster of its own, or TEST_DATABASE_URL. It needs about a minute.
"""
import os
import sys
from pathlib import Path
from statistics import median

from bench import Bench, quick_status

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "forks")]
from pretend import install, until
from steps import code_of, handler_url
from stores import Cluster, Files, Rows, database

ROUNDS, MESSAGES = 5, 500


def measure(bench, store):
    """Seconds for a message at the handler, 16 connections at once, and in a pass over them."""
    world, app = bench.world, store.app
    world.app, world.portal.app_url = app, app.url
    app.handler = store.handler
    world.smsru.trouble, world.smsru.slow = None, 2
    took, _ = bench.load(int(app.env["PORT"]), bench.messages(app, MESSAGES))
    world.smsru.slow = 0
    world.smsru.hurry.set()  # those that the operator has now need not take their two seconds
    until(lambda: handed_over(store), 60, "not all were sent")
    world.smsru.hurry.clear()
    store.make_due()
    world.smsru.trouble = quick_status
    world.portal.messages = {name: {"code": code_of(world), "author": 1, "status": "sent",
                                    "history": []} for name in store.messages()}
    passed, _ = bench.one_pass(app)
    assert not store.messages()
    return took / MESSAGES, passed / MESSAGES


def handed_over(store):
    return all(one["operator_id"] for one in store.messages().values())


def start(bench, store):
    """Install an app on this store; what its portal calls from then on."""
    world = bench.world
    world.app = None
    world.portal.senders.clear()
    world.portal.bindings.clear()
    store.app = store.start(world, RETRY_AFTER=3600)
    assert install(world).status_code == 200
    store.handler = handler_url(world)


def compare(bench, stores):
    figures = {name: [] for name in stores}
    for store in stores.values():
        start(bench, store)
    for _ in range(ROUNDS):
        for name, store in stores.items():
            figures[name].append(measure(bench, store))
    print("| store | /handler, 16 connections | a pass asks and reports |\n|---|---|---|")
    rates = {}
    for name, found in figures.items():
        rates[name] = handler, passed = [1 / median(values) for values in zip(*found)]
        print(f"| {name} | {handler:.0f} a second | {passed:.0f} a second |")
    files, rows = rates.values()
    ratios = [f"{mine / other:.2f} ×" for other, mine in zip(files, rows)]
    print(f"| PostgreSQL against files | {ratios[0]} | {ratios[1]} |")


def main():
    given = os.environ.get("TEST_DATABASE_URL")
    cluster = None if given else Cluster()
    bench = Bench(big=False)
    try:
        bench.start()
        with database(given or cluster.url) as url:
            compare(bench, {"files": Files(), "PostgreSQL": Rows(url)})
            bench.world.stop()
    finally:
        bench.stop()
        if cluster:
            cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
