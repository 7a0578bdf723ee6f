"""Receipts pushed by SMS.ru: python tests/forks/receipts.py; as the callback in SMS.ru's cabinet
give https://mydomain.ru/sms/receipts. A status reaches Bitrix24 at once; passes stay as the net."""
import hashlib
import os
import re
import sys
import time
from contextlib import suppress

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import app

USUAL = app.Queue


def index(operator_id):
    """A link to the message's file, beside it; what is left behind is swept after 14 days."""
    return app.QUEUE / (re.sub(r"[^\w-]", "", operator_id)[:64] + ".receipt")


class Queue(USUAL):
    def record(message, due):
        USUAL.record(message, due)
        if message["operator_id"]:
            with suppress(OSError):  # there already; or no room, then polling will do
                os.symlink(f"{message['message_id']}.json", index(message["operator_id"]))

    def remove(message):
        index(message["operator_id"]).unlink(missing_ok=True)  # first: no link to a later namesake
        USUAL.remove(message)


@app.app.post("/receipts")
def receipts():
    """In: data[0]=sms_status, id, code, time in lines, up to data[99]; hash. Out: 100, or again."""
    fields, settings = app.form(), app.CRest.get_setting_data()
    data = [fields.get(f"data[{number}]", "") for number in range(100)]
    key = app.operator_settings(settings)["api_key"]
    right = hashlib.sha256((key + "".join(data)).encode()).hexdigest()
    same = key and app.compare_digest(right.encode(), fields.get("hash", "").encode())
    app.require(settings and same, 403, "WRONG_HASH: SMS.ru signs its receipts with the saved key")
    taken = [message for message in (take(entry, settings) for entry in data) if message]
    app.POOL.submit(app.report, taken, {**dict.fromkeys(app.FINAL, 0), "errors": {}})
    return "100"


def take(entry, settings):
    """On disk before SMS.ru is answered. Out: the message, or None: not ours, or known already."""
    kind, operator_id, code, *_ = (*entry.split("\n"), "", "", "")
    message = kind == "sms_status" and index(operator_id).is_symlink() and USUAL.read(
        f"{app.QUEUE}/{os.readlink(index(operator_id))}", settings)
    if message and not message["status"] and app.SMSRU_CODES.get(code) in app.FINAL:
        message["status"] = app.SMSRU_CODES[code]
        Queue.record(message, time.time() + app.RETRY_AFTER)  # for a pass, should report() fail
        return message


app.Queue, application = Queue, app.application
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
