"""Connections that cost nothing when a client is silent: who asks for nothing, or takes nothing, is disconnected.

uvicorn waits without end for the first request of a connection, and for a peer that has stopped reading. These two protocols are
uvicorn's own with a check every few seconds; and of many connections that ask for nothing, the oldest makes room for a new one,
so that strangers cannot keep out those who are let in.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MOST_IDLE = 32
"""Connections without a request, of one server."""

IDLE_S, STALLED_S = 10.0, 20.0
"""How long a connection may ask for nothing, and how long it may take nothing of what it is sent."""

_CHECKS = 4


class Patience:
    """Watches one connection, and ends it.

    Args:
        transport: of the connection.
        loop: whose clock counts.

    Attributes:
        idle_since: since when it has asked for nothing; None during a request.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.idle_since: float | None = loop.time()
        self._unsent, self._unsent_since = 0, loop.time()
        self._timer = loop.call_later(IDLE_S / _CHECKS, self._check)

    def busy(self) -> None:
        """A request has come."""
        self.idle_since = None

    def idle(self) -> None:
        """The request has been answered."""
        self.idle_since = self._loop.time()

    def end(self) -> None:
        """The connection is watched no longer."""
        self._timer.cancel()

    def disconnect(self) -> None:
        """Close at once, without sending what is left."""
        self._timer.cancel()
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
    """HTTP/1.1 of uvicorn, watched."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._patience = Patience(transport, self.loop)
        peers = [peer._patience for peer in self.connections if isinstance(peer, HttpProtocol)]
        idle = [(peer.idle_since, peer) for peer in peers if peer.idle_since is not None]
        if len(idle) > MOST_IDLE:
            min(idle, key=lambda entry: entry[0])[1].disconnect()

    def handle_events(self) -> None:
        """See H11Protocol."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._patience.busy()

    def on_response_complete(self) -> None:
        """See H11Protocol."""
        self._patience.idle()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """See H11Protocol: another protocol takes over."""
        self._patience.end()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._patience.end()
        super().connection_lost(exc)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Websockets of uvicorn, watched."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._patience = Patience(self.transport, self.loop)
        self._patience.busy()  # its pings tell whether the peer is alive

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._patience.end()
        super().connection_lost(exc)
