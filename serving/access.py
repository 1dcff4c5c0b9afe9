"""Who may talk to the server: API keys, and the names under which it may be addressed. Everything is refused unless
allowed.

Both run on resolved routes, not on path texts, so no way of writing a path gets around them. A handler opts out of the
key with `opt={PUBLIC: True}`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from serving.errors import ForbiddenError, UnauthorizedError

PUBLIC = "public"

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._\-]+)(?::\d{1,5})?")


class ApiKeys(ASGIMiddleware):
    """Asks for one of the keys, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""

    scopes = (ScopeType.HTTP, ScopeType.ASGI)
    exclude_opt_key = PUBLIC

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            await next_app(scope, receive, send)
            return
        given = _given_key(scope)
        if given is None:
            message = "an API key is needed: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`"
            raise UnauthorizedError(message, headers={"WWW-Authenticate": "Bearer"})
        # Digests have one length and every key is compared, so the time taken tells nothing.
        digest = _digest(given)
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise UnauthorizedError("this API key is not valid here", headers={"WWW-Authenticate": "Bearer"})
        await next_app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given_key(scope: Scope) -> bytes | None:
    headers = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return headers.get(b"x-api-key", b"").strip() or None


class AllowedHosts(ASGIMiddleware):
    """Refuses requests that address the server by another name than its own.

    A web page can make a browser resolve its own name to 127.0.0.1 (DNS rebinding) and then talk to this server as if
    it were that page's. Such requests carry the page's name in `Host`.
    """

    scopes = (ScopeType.HTTP, ScopeType.ASGI)

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        match = _HOST.fullmatch(host)
        if match is None or match.group(1).lower() not in self._names:
            raise ForbiddenError(
                f"this server is not called {host[:100]!r}; if it should be, start it with --allowed-host NAME",
                code="host_not_allowed",
            )
        await next_app(scope, receive, send)


def allowed_names(host: str, allowed_hosts: Sequence[str]) -> list[str] | None:
    """The names under which a server that listens on `host` may be addressed; None: any name."""
    if "*" in allowed_hosts:
        return None
    own = f"[{host}]" if ":" in host else host
    if allowed_hosts:
        return [*allowed_hosts, own]
    return ["localhost", "127.0.0.1", "[::1]", own] if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether listening on `host` reaches this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
