"""Receipts pushed by SMS.ru: python tests/forks/receipts.py; as the callback in SMS.ru's cabinet
give https://mydomain.ru/sms/receipts. A status reaches Bitrix24 at once; passes stay as the net."""
import hashlib
import re
import sys
from contextlib import suppress

sys.path.insert(0, __file__.rpartition("/tests/")[0])
import app

USUAL, INDEX = app.Queue, app.DATA_DIR / "receipts"  # links: the operator's id → sent/ID.json
INDEX.mkdir(exist_ok=True)


class Queue(USUAL):
    def record(message, folder, later=None):
        USUAL.record(message, folder, later)
        with suppress(OSError):  # no id, or there already, or no room: then asking will do
            link = INDEX / app.Path(message["operator_id"]).name
            link.symlink_to(f"../queue/sent/{message['message_id']}.json")

    def sweep():
        USUAL.sweep()
        for link in [one for one in INDEX.iterdir() if not one.exists()]:  # it leads nowhere
            link.unlink(missing_ok=True)


@app.app.post("/receipts")
def receipts():
    """In: data[0]=sms_status, id, code, time in lines, up to data[99]; hash. Out: 100, or again."""
    fields, key = app.form(), app.operator_settings()["api_key"]
    data = [fields.get(f"data[{number}]", "") for number in range(100)]
    right = hashlib.sha256((key + "".join(data)).encode()).hexdigest()
    same = key and app.compare_digest(right.encode(), fields.get("hash", "").encode())
    app.require(same, 403, "WRONG_HASH: SMS.ru signs its receipts with the saved key")
    pushed = re.findall(r"^sms_status\n([0-9-]+)\n([0-9]{3})$", "\n".join(data), re.MULTILINE)
    with suppress(BlockingIOError), app.locked("statuses", wait=False):
        taken = [message for one in pushed for message in take(*one)]
        totals = {**dict.fromkeys(app.FINAL, 0), "errors": {}}
        for start in (0, 50):  # what it does not take now, a pass will tell
            app.tell("sent", taken[start:start + 50], totals)
        return "100"
    app.require(False, 503, "BUSY: a pass is under way; push it again in a minute")


def take(operator_id, code):
    """Yield the message, its status on disk; none that is not ours, or has a status already."""
    status, link = app.SMSRU_STATUSES.get(int(code), "failed"), INDEX / operator_id[:64]
    ids = [link.readlink().stem] if status and link.is_symlink() else []
    for message in USUAL.read("sent", ids):
        if message["operator_id"] == operator_id and not message["status"]:
            message["status"] = status
            USUAL.record(message, "sent", "sent")
            yield message


app.Queue, application = Queue, app.application
if __name__ == "__main__":
    app.main(*sys.argv[1:2])
