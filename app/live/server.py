"""The page: one HTML file and a websocket, on loopback unless told otherwise.

The server runs on a thread of its own and never holds up detection: `Hub.show` leaves the newest result and returns. Every
client has one task that sends the newest result, as often as the client takes it, and one that listens. What clients send
is bounded in size, parsed strictly, and answered with an error where it makes no sense; nothing they send ends the server.

Who may connect: on loopback, pages of this server only (the Host and Origin headers are compared, so that no other website
can reach it through the visitor's browser); on other addresses, who knows the token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvicorn
from evburst.app.live.broadcast import Hub
from evburst.app.live.commands import Commands, RefusedError
from evburst.app.live.document import content_security_policy, page
from evburst.app.live.pipeline import LivePipeline
from evburst.data.errors import ConfigError
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOG = logging.getLogger(__name__)
_MOST_CLIENTS = 8
_MOST_TEXT = 1000
_FRAME_HEADER = 8
_HEARTBEAT_S = 0.5
_STALLED_S = 20.0


class PageServer:
    """The page of one run, until `stop`.

    Args:
        pipeline: what is shown and steered.
        address: HOST:PORT.

    Attributes:
        url: where the page is, with the token where one is needed.

    Raises:
        ConfigError: the address is malformed, or taken.
    """

    def __init__(self, pipeline: LivePipeline, address: str) -> None:
        host, port = _host_port(address)
        self._listener = _listen(host, port)
        port = self._listener.getsockname()[1]
        loopback = _is_loopback(host)
        token = None if loopback else secrets.token_urlsafe(16)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
        self._folder = tempfile.TemporaryDirectory(prefix="evburst_live_")
        self._commands = Commands(pipeline, Path(self._folder.name))
        self.hub = Hub(pipeline)
        pipeline.viewers.append(self.hub)
        width, height = pipeline.source.sensor_size
        config = uvicorn.Config(
            Guard(_application(self.hub, self._commands), loopback, token),
            log_level="critical",
            ws_max_size=max(width * height + _FRAME_HEADER, _MOST_TEXT),
            ws_max_queue=4,
            ws_ping_interval=10.0,
            ws_ping_timeout=_STALLED_S,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        if not loopback:
            text = "%s can be reached from other machines, without encryption: whoever has the token can watch and steer"
            _LOG.warning(text, address)
        _LOG.info("page: %s", self.url)

    def stop(self) -> None:
        """Close every connection and remove the page's recordings."""
        self._server.should_exit = True
        self._thread.join(5.0)
        self._commands.close()
        self._folder.cleanup()

    def _run(self) -> None:
        self._server.run(sockets=[self._listener])


class Guard:
    """Lets in whom the module's rules let in; the rest gets 403, or a websocket that is not accepted.

    Args:
        application: what is guarded.
        loopback: bound to a loopback address.
        token: what a visitor must know; None on loopback.
    """

    def __init__(self, application: ASGIApp, loopback: bool, token: str | None) -> None:
        self._application, self._loopback, self._token = application, loopback, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        if self._admitted(scope):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("not allowed: open the address that live.py printed\n", 403)(scope, receive, send)

    def _admitted(self, scope: Scope) -> bool:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        with suppress(ValueError):
            if self._loopback and not _is_loopback(urlsplit(f"//{host}").hostname or ""):
                return False
            if origin is not None and urlsplit(origin).netloc != host:
                return False
            if self._token is None:
                return True
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            return hmac.compare_digest(given.encode(), self._token.encode())
        return False


def _application(hub: Hub, commands: Commands) -> FastAPI:
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    markup, policy = page(), content_security_policy()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    @application.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(markup, headers=headers)

    @application.get("/recording.dat", response_model=None)
    async def recording() -> FileResponse | PlainTextResponse:
        path = commands.finished
        if path is None:
            return PlainTextResponse("nothing has been recorded yet\n", 404)
        name = time.strftime("live_%Y%m%d_%H%M%S.dat")
        return FileResponse(path, media_type="application/octet-stream", filename=name, headers={"Cache-Control": "no-store"})

    @application.websocket("/live")
    async def live(socket: WebSocket) -> None:
        if hub.clients >= _MOST_CLIENTS:
            await socket.close(1013)
            return
        await socket.accept()
        await _Client(socket, hub, commands).run()

    return application


class _Client:
    """One websocket: the newest results out, commands and pictures in."""

    def __init__(self, socket: WebSocket, hub: Hub, commands: Commands) -> None:
        self._socket, self._hub, self._commands = socket, hub, commands
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until the client leaves, or takes nothing for 20 s."""
        with self._hub.client():
            tasks = [asyncio.create_task(work) for work in (self._send(), self._listen())]
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self._commands.leave, self)
            with suppress(RuntimeError):
                await self._socket.close()

    async def _send(self) -> None:
        seen = 0
        await self._text(self._hub.about() | self._commands.state())
        told_s = time.perf_counter()
        while True:
            seen, message = await self._hub.next(seen, _HEARTBEAT_S)
            if message is not None:
                async with self._turn:
                    await asyncio.wait_for(self._socket.send_bytes(message), _STALLED_S)
            if time.perf_counter() - told_s >= _HEARTBEAT_S:
                await self._text(self._commands.state())
                told_s = time.perf_counter()

    async def _listen(self) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    answer = await self._take(message.get("text"), message.get("bytes"))
                except RefusedError as error:
                    answer = {"error": str(error)}
                if answer is not None:
                    await self._text(answer | {"answer": True})

    async def _take(self, text: str | None, data: bytes | None) -> dict[str, Any] | None:
        if data is not None:
            self._commands.picture(self, data)
            return None
        if text is None or len(text) > _MOST_TEXT:
            raise RefusedError(f"a message has at most {_MOST_TEXT} characters")
        try:
            command = json.loads(text)
        except (ValueError, RecursionError):
            raise RefusedError("not JSON") from None
        return await asyncio.to_thread(self._commands.obey, self, command)

    async def _text(self, content: dict[str, Any]) -> None:
        async with self._turn:
            await asyncio.wait_for(self._socket.send_text(json.dumps(content)), _STALLED_S)


def _host_port(address: str) -> tuple[str, int]:
    with suppress(ValueError):
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port is not None and not parts.path:
            return parts.hostname, parts.port
    raise ConfigError(f"--serve {address}: write it as HOST:PORT, e.g. 127.0.0.1:8000")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"--serve {host}:{port}: cannot listen there ({error.strerror}); another port may be free") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
