"""The pretend OAuth server: who a token belongs to, and how it is renewed.

Written from the pages "OAuth 2.0" and "app.info" of https://apidocs.bitrix24.com.
"""
import re
import threading
import time
import uuid
from urllib.parse import urlsplit

from .wire import Party

HOUR = 3600
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST, GET, OPTIONS",
        "Access-Control-Allow-Headers": "origin, content-type, accept, x-stand-in"}
TOKEN_ERRORS = {"expired_token": "The access token provided has expired.",
                "invalid_token": "Unable to get application by token",
                "NO_AUTH_FOUND": "Wrong authorization data"}


def random_id():
    return uuid.uuid4().hex


class RestError(Exception):
    """An error as the portal words it: {"error": code, "error_description": text} and a status."""

    def __init__(self, code, text, status=400):
        super().__init__(code)
        self.status, self.body = status, {"error": code, "error_description": text}


class OAuth(Party):
    """The OAuth server: knows every token, whose it is and how long it lives."""

    name = "oauth"

    def __init__(self, wire=None, port=0):
        super().__init__(wire, port)
        self.clients = {}   # client_id → client_secret
        self.tokens = {}    # access token → {"portal", "user", "client_id", "expires"}
        self.refresh = {}   # refresh token → the same; one use each
        self.clock = time.time
        self.lock = threading.RLock()

    def issue(self, portal, user, client_id=None, refresh=True):
        """Give a user's tokens to an application: an hour for access, months for refresh."""
        access, renewal = random_id() + random_id()[:38], random_id() + random_id()[:38]
        owner = {"portal": portal, "user": user, "client_id": client_id or portal.client_id,
                 "expires": int(self.clock()) + HOUR}
        with self.lock:
            self.tokens[access] = owner
            if refresh:
                self.refresh[renewal] = owner
        return {"access_token": access, "refresh_token": renewal if refresh else "",
                "expires": owner["expires"], "expires_in": HOUR}

    def owner(self, token):
        """Return whose token it is; its errors are the documented ones, all with 401."""
        owner = self.tokens.get(token)
        code = ("NO_AUTH_FOUND" if not token else "invalid_token" if not owner else
                "expired_token" if owner["expires"] <= self.clock() else None)
        if code:
            raise RestError(code, TOKEN_ERRORS[code], 401)
        return owner

    def answer(self, method, path, fields, request):
        try:
            if path.rstrip("/") == "/oauth/token" and method == "POST":
                return 200, self.renew(request.form), {}
            if re.fullmatch(r"/rest/app\.info(\.json)?", path):
                return 200, self.app_info(fields.get("auth", "")), CORS
        except RestError as error:
            return error.status, error.body, {}
        return 404, {"error": "not_found", "error_description": "No such page"}, {}

    def renew(self, fields):
        """OAuth 2.0, "Renewing the tokens": the new refresh token replaces the one just spent.

        `domain` in the answer is the OAuth server's own, a well-known stumbling block.
        """
        if fields.get("grant_type") != "refresh_token":
            raise RestError("invalid_request", "grant_type must be refresh_token")
        if self.clients.get(fields.get("client_id"), "") != fields.get("client_secret"):
            raise RestError("invalid_client", "Client credentials are invalid", 401)
        with self.lock:
            owner = self.refresh.get(fields.get("refresh_token"))
            if not owner or owner["client_id"] != fields["client_id"] \
                    or not owner["portal"].users[owner["user"]]["active"]:
                raise RestError("invalid_grant", "The refresh token is invalid or was used")
            del self.refresh[fields["refresh_token"]]
        portal = owner["portal"]
        return {**self.issue(portal, owner["user"], owner["client_id"]), "scope": portal.scope,
                "domain": urlsplit(self.url).netloc, "server_endpoint": self.url + "/rest/",
                "client_endpoint": portal.endpoint, "member_id": portal.member_id,
                "user_id": owner["user"], "status": "L"}

    def app_info(self, token):
        """REST `app.info` on the OAuth server: the proof whose token it is, and of which portal."""
        owner = self.owner(token)
        portal = owner["portal"]
        return {"result": {
            "client_id": owner["client_id"], "scope": portal.scope, "expires": owner["expires"],
            "user_id": owner["user"], "install": {
                "installed": portal.installed, "version": portal.version, "status": "L",
                "domain": portal.domain, "client_endpoint": portal.endpoint,
                "uri": "http://" + portal.domain, "member_id": portal.member_id}}}
