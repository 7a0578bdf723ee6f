"""What lies on the app's disk, as data/README.md documents it: the queue's folders, the settings.

Read only, and anything may be just leaving. Secrets are masked as on the wire.
"""
import json
import re
import time

FOLDERS = {  # in the order of a message's way → how far a message in it is
    "new": {"en": "taken, not yet with the operator", "ru": "принято, у оператора ещё нет"},
    "sending": {"en": "the operator is being asked", "ru": "оператору задан вопрос"},
    "sent": {"en": "the operator has it; waits for its final status",
             "ru": "у оператора; ждёт итогового статуса"},
    "failed": {"en": "never sent; the portal is still to be told",
               "ru": "не отправлено; портал ещё не знает"}}
SECRET = re.compile(r"token|key|secret|password|login", re.IGNORECASE)


class Disk:
    """DATA_DIR of one app, looked at from outside."""

    def __init__(self, data, wire):
        self.data, self.wire = data, wire

    def look(self):
        """Return everything: folders with their files, the settings, whether sending rests."""
        folders = [{"name": name, **text, "files": self.files(name)}
                   for name, text in FOLDERS.items()]
        return {"folders": folders, "settings": self.settings(), "rests": self.rests()}

    def stamp(self):
        """Return a text that changes whenever something on the disk does."""
        marks = [f"{path.parent.name}/{path.name} {when}" for path, when in self.times()]
        return "\n".join(marks)

    def times(self):
        """Yield what the page shows, with its mtime in seconds."""
        queue = self.data / "queue"
        files = [path for name in FOLDERS for path in sorted((queue / name).glob("*.json"))]
        for path in (*files, self.data / "settings.json", self.data / "send.lock"):
            try:
                yield path, path.stat().st_mtime
            except OSError:
                pass

    def count(self):
        """How many messages lie in each folder."""
        found = [path.parent.name for path, _ in self.times()]
        return {name: found.count(name) for name in FOLDERS}

    def files(self, folder):
        return [found for path, when in self.times() if path.parent.name == folder
                for found in [self.file(path, when)] if found]

    def file(self, path, when):
        """One message: its mtime says when it is due, its text what it is."""
        content = self.read(path)
        return content is not None and {
            "name": path.name, "id": path.stem, "due": max(0, round(when - time.time(), 1)),
            "content": self.wire.mask(content)}

    def read(self, path):
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):  # it has just left, or is not whole
            return None

    def settings(self):
        """settings.json; of a token, a key, a secret, of an operator's field only the name."""
        content = self.read(self.data / "settings.json")
        return None if content is None else self.wire.mask(names_only(content))

    def rests(self):
        """Until when sending rests, if it does: send.lock's mtime lies ahead then."""
        for path, when in self.times():
            if path.name == "send.lock" and when > time.time():
                return {"until": when, "seconds": round(when - time.time(), 1),
                        "why": path.read_text("utf-8", "replace")}
        return None

    def due(self):
        """When the next message in each folder may be tried, in seconds since 1970."""
        rests, found = self.rests(), {}
        for path, when in self.times():
            if path.suffix == ".json" and path.parent.name in FOLDERS:
                folder = path.parent.name
                found[folder] = min(when, found.get(folder, when))
        if "new" in found and rests:
            found["new"] = max(found["new"], rests["until"])
        return found


def names_only(value, secret=False):
    """Replace each secret text by dots: nothing of it is shown, not even its length."""
    if isinstance(value, dict):
        return {name: names_only(item, secret or bool(SECRET.search(name)) or name == "operators")
                for name, item in value.items()}
    if isinstance(value, list):
        return [names_only(item, secret) for item in value]
    return "…" if secret and value not in ("", None) else value
