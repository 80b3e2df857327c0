"""Who may connect to the live page: only pages of this server, or clients with the token."""

from __future__ import annotations

import hmac
from contextlib import suppress
from urllib.parse import SplitResult, parse_qs, urlsplit

from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """Rejects requests from other websites or without the token, with status 403 or a refused websocket.

    Args:
        application: the application to protect.
        allow_hosts: origins that may connect even if the Host header differs, because a proxy may have replaced it.
        token: required token, or None.
    """

    def __init__(self, application: ASGIApp, allow_hosts: tuple[str, ...], token: str | None) -> None:
        self._application, self._allow_hosts, self._token = application, allow_hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or reject it."""
        if self._is_admitted(scope):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("not allowed: open the address that evburst live printed\n", 403)(scope, receive, send)

    def _is_admitted(self, scope: Scope) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        with suppress(ValueError):
            origin = headers.get(b"origin")
            if origin is not None and not self._is_own(urlsplit(origin), headers.get(b"host", "")):
                return False
            if self._token is None:
                return True
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            return hmac.compare_digest(given.encode(), self._token.encode())
        return False

    def _is_own(self, origin: SplitResult, host: str) -> bool:
        name = (origin.hostname or "").lower()
        allowed = (pattern.lower() for pattern in self._allow_hosts)
        return origin.netloc == host or any(p in ("*", name) or (p.startswith("*.") and name.endswith(p[1:])) for p in allowed)
