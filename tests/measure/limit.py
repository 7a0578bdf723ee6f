"""The limit that bench.py measures against: python tests/measure/limit.py PORT FOLDER

On the app's own server a bare Bottle route, and one that reads the same form and makes one durable
write with the same flushes, and nothing else. DATA_DIR and the rest are set as for the app.
"""
import json
import os
import sys
from itertools import count
from pathlib import Path
from urllib.parse import parse_qsl

from bottle import Bottle, request

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from app import Connection, Server

app, numbers = Bottle(), count()


@app.route("/", ["GET", "POST"])
def bare():
    return {"result": True}


@app.post("/durable")
def durable():
    fields = dict(parse_qsl(request.body.read().decode(), True))
    path = os.path.join(sys.argv[2], f"{next(numbers)}.json")
    with open(path + ".tmp", "x", encoding="utf-8") as file:
        json.dump(fields, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.link(path + ".tmp", path)
    os.unlink(path + ".tmp")
    folder = os.open(sys.argv[2], os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return {"result": True}


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]), server_class=Server,
            handler_class=Connection, quiet=True)
