"""Access control: host names that clients may use, web origins that may call the server, and API keys.

One layer around the whole application decides, before routing, so that refused callers do not learn which routes exist.
Everything is refused unless allowed; without a key, only public paths are served.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec
from litestar.config.cors import CORSConfig
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from serving.api.errors import (
    ApiError,
    ErrorShape,
    ErrorShapes,
    ForbiddenError,
    HeadersTooLargeError,
    UnauthorizedError,
    shape_of,
)
from serving.api.service.callers import CALLER

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._\-]+)(?::\d{1,5})?")
MAX_HEADERS = 256
"""Most headers of a request."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """Access rules. The defaults allow everything except pages of other origins."""

    names: Sequence[str] | None = None
    """Allowed host names (the Host header); None: any."""
    cors: CORSConfig | None = None
    """Web origins whose pages may call the server; None: only its own."""
    keys: Sequence[str] = ()
    """API keys; empty: none is needed."""
    public_paths: Collection[str] = ()
    """Paths that need no key."""
    error_shapes: ErrorShapes = field(default_factory=dict[str, ErrorShape])


class Access:
    """Middleware that refuses requests against the rules. It wraps the router, and the request log wraps it."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self.app = app
        self._names = None if rules.names is None else frozenset(name.lower() for name in rules.names)
        self._cors = rules.cors
        self._public_paths = frozenset(rules.public_paths)
        self._digests = [_digest(key.encode()) for key in rules.keys]
        self._error_shapes = rules.error_shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not supported"})
            return
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await self._refuse(scope, error, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: HTTPScope) -> None:
        if sum(1 for _ in scope["headers"]) > MAX_HEADERS:
            raise HeadersTooLargeError(f"the request has more than {MAX_HEADERS} headers; send fewer")
        headers = _headers_of(scope)
        self._check_host(headers)
        self._check_origin(scope, headers)
        needs_key = self._digests and not self._is_public(scope) and not self._is_preflight(scope, headers)
        CALLER.set(self._check_key(headers) if needs_key else 0)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        """Guard against DNS rebinding: a web page can make a browser resolve the page's own name to 127.0.0.1 and then
        treat this server as same-origin. Such requests have the page's name in `Host`."""
        if self._names is None:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        match = _HOST.fullmatch(host)
        if match is None or match.group(1).lower() not in self._names:
            raise ForbiddenError(
                f"this server is not called {host[:100]!r}; if it should be, start it with --allowed-host NAME",
                code="host_not_allowed",
            )

    def _check_origin(self, scope: HTTPScope, headers: dict[bytes, bytes]) -> None:
        """Guard against cross-site requests: a page of any site can make its visitor's browser send requests here,
        even though it cannot read the responses. Browsers mark them with `Origin`, and with `Sec-Fetch-Site` if the
        server's address counts as secure. Other clients send neither."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and (self._is_allowed(origin) or _is_own(origin, headers.get(b"host", b"").decode("latin-1"))):
            return
        foreign = headers.get(b"sec-fetch-site", b"none").lower() not in (b"none", b"same-origin")
        if not origin and (not foreign or _is_link(scope, headers)):
            return
        raise ForbiddenError(
            f"pages of {origin[:100] or 'another site'!r} may not call this server; if they should, start it with "
            "--allowed-origin ORIGIN",
            code="origin_not_allowed",
        )

    def _check_key(self, headers: dict[bytes, bytes]) -> int:
        """The number of the key that the request has, from 1.

        Raises:
          UnauthorizedError: it has none, or another.
        """
        given = _given_key(headers)
        if given is None:
            message = "an API key is needed: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`"
            raise UnauthorizedError(message, headers={"WWW-Authenticate": "Bearer"})
        # Digests have equal length and every key is compared, so the time taken reveals nothing.
        digest = _digest(given)
        numbers = [number * hmac.compare_digest(digest, known) for number, known in enumerate(self._digests, 1)]
        if (number := max(numbers)) == 0:
            raise UnauthorizedError("this API key is not valid here", headers={"WWW-Authenticate": "Bearer"})
        return number

    def _is_allowed(self, origin: str) -> bool:
        return self._cors is not None and self._cors.is_origin_allowed(origin)

    def _is_preflight(self, scope: HTTPScope, headers: dict[bytes, bytes]) -> bool:
        """Whether this is a CORS preflight for an allowed page, which cannot carry a key. The CORS middleware answers
        it."""
        asks = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        return asks and self._is_allowed(headers.get(b"origin", b"").decode("latin-1"))

    def _is_public(self, scope: HTTPScope) -> bool:
        # The path as the router sees it. Other spellings of a public path need a key, which does no harm.
        path = scope["path"]
        if root := scope.get("root_path", ""):
            path = path.split(root, maxsplit=1)[-1]
        return scope["method"] in ("GET", "HEAD") and "/" + path.strip("/") in self._public_paths

    async def _refuse(self, scope: HTTPScope, error: ApiError, send: Send) -> None:
        body = msgspec.json.encode(shape_of(scope["path"], self._error_shapes).body(error))
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
        origin = _headers_of(scope).get(b"origin", b"").decode("latin-1")
        if self._cors is not None and self._is_allowed(origin):  # an allowed page may read the error
            headers |= self._cors.simple_headers
            headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _headers_of(scope: HTTPScope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given_key(headers: dict[bytes, bytes]) -> bytes | None:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return headers.get(b"x-api-key", b"").strip() or None


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is this server, as the client addressed it: same name and port. The scheme may differ behind a
    TLS proxy."""
    try:
        page = urlsplit(origin)
        page_port = page.port or _DEFAULT_PORTS.get(page.scheme)
        here = urlsplit(f"//{host}")
        here_port = here.port or _DEFAULT_PORTS.get(page.scheme)
    except ValueError:
        return False
    is_web = page.scheme in _DEFAULT_PORTS and page.hostname is not None
    return is_web and (page.hostname, page_port) == (here.hostname, here_port)


def _is_link(scope: HTTPScope, headers: dict[bytes, bytes]) -> bool:
    """Whether the user followed a link to a page of this server."""
    navigates = headers.get(b"sec-fetch-mode", b"").lower() == b"navigate"
    top = headers.get(b"sec-fetch-dest", b"document").lower() == b"document"
    return navigates and top and scope["method"] in ("GET", "HEAD")


def allowed_names(host: str, allowed_hosts: Sequence[str]) -> list[str] | None:
    """Allowed host names of a server that listens on `host`; None: any."""
    if "*" in allowed_hosts:
        return None
    own = f"[{host}]" if ":" in host else host
    if allowed_hosts:
        return [*allowed_hosts, own]
    return ["localhost", "127.0.0.1", "[::1]", own] if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
