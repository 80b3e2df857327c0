"""HTTP and websocket protocols that disconnect idle and stalled clients.

uvicorn waits indefinitely for the first request of a connection and for a peer that has stopped reading. These two protocols
extend uvicorn's with a periodic check. If there are too many idle connections, a new one replaces the oldest, so that
unauthorised clients cannot exhaust the connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_IDLE = 32
"""Maximum number of idle connections per server."""

IDLE_S, STALLED_S = 10.0, 20.0
"""Longest time without a request, and longest time in which the peer reads nothing of the data sent, in seconds."""

CLOSE_S = 2.0
"""Longest wait for the peer's answer to the end of a websocket, in seconds."""

_CHECKS = 4


class Watchdog:
    """Closes a connection that is idle or stalled for too long.

    Args:
        transport: the connection's transport.
        loop: the event loop whose clock is used.

    Attributes:
        idle_since: time of the loop's clock since which there has been no request, in seconds; None during a request and
            after `disconnect`.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.idle_since: float | None = loop.time()
        self._unsent, self._unsent_since = 0, loop.time()
        self._timer = loop.call_later(IDLE_S / _CHECKS, self._check)

    def busy(self) -> None:
        """Note that a request has begun."""
        self.idle_since = None

    def idle(self) -> None:
        """Note that the request has been answered."""
        self.idle_since = self._loop.time()

    def end(self) -> None:
        """Stop watching the connection."""
        self._timer.cancel()

    def disconnect(self) -> None:
        """Close the connection at once and discard unsent data."""
        self._timer.cancel()
        self.idle_since = None  # the connection stays in the server's list until the loop's next iteration
        self._transport.abort()

    def _check(self) -> None:
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        is_idle = self.idle_since is not None and now - self.idle_since >= IDLE_S
        if is_idle or now - self._unsent_since >= STALLED_S:
            self.disconnect()
        else:
            self._timer = self._loop.call_later(IDLE_S / _CHECKS, self._check)


class HttpProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a watchdog."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._watchdog = Watchdog(transport, self.loop)
        watchdogs = [peer._watchdog for peer in self.connections if isinstance(peer, HttpProtocol)]
        idle = [(watchdog.idle_since, watchdog) for watchdog in watchdogs if watchdog.idle_since is not None]
        for _, watchdog in sorted(idle, key=lambda entry: entry[0])[:-MAX_IDLE]:
            watchdog.disconnect()

    def handle_events(self) -> None:
        """See H11Protocol."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._watchdog.busy()

    def on_response_complete(self) -> None:
        """See H11Protocol."""
        self._watchdog.idle()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """See H11Protocol; the websocket protocol takes over the connection."""
        self._watchdog.end()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._watchdog.end()
        super().connection_lost(exc)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's websocket protocol with a watchdog."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._watchdog = Watchdog(self.transport, self.loop)
        self._watchdog.busy()  # never idle: uvicorn's pings detect dead peers
        self.close_timeout = CLOSE_S

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._watchdog.end()
        super().connection_lost(exc)
