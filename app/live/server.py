"""Web server of the live page: one HTML file and a websocket, on loopback by default.

The server runs on its own thread and never delays detection: `Broadcaster.show` stores the newest result and returns. Each
client has a task that sends the newest result as fast as the client reads, and a task that receives. Messages from clients
are limited in size and rate, validated strictly, and answered with an error if invalid; no message can stop the server.

On loopback only this server's own pages may connect: Host and Origin are checked, so that other websites cannot reach the
server through the visitor's browser. On other addresses clients need the token. Behind a reverse proxy, `allow_hosts` lists
the host names that visitors use, and `root_path` is the path prefix.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from evburst.app.live import connections
from evburst.app.live.access import Guard
from evburst.app.live.broadcast import Broadcaster, View
from evburst.app.live.commands import PICTURE_HEADER, Commands, RefusedError
from evburst.app.live.connections import HttpProtocol, WebSocketProtocol
from evburst.app.live.document import content_security_policy, page
from evburst.app.live.pipeline import LivePipeline
from evburst.data.errors import ConfigError

_LOG = logging.getLogger(__name__)
_MAX_CLIENTS = 8
_MAX_TEXT = 1000
_HEARTBEAT_S = 0.5
_SEND_BUFFER = 1 << 18
_CHUNK = 1 << 18
_COMMANDS_PER_S, _COMMANDS_AT_ONCE = 50.0, 25
_REPEAT_S = 60.0
_OF_VIEW = {"inset", "paused"}
_SERVED = {"http": "/recording.dat", "websocket": "/live"}
"""What is served beside the page, by the type of the connection."""


@dataclass(frozen=True)
class Site:
    """Address of the page.

    Attributes:
        address: HOST:PORT to listen on.
        root_path: path prefix of the page behind a reverse proxy, e.g. /evburst.
        allow_hosts: host names by which browsers may reach the page, in addition to the address itself.
    """

    address: str
    root_path: str = ""
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.root_path and (not self.root_path.startswith("/") or any(c in self.root_path for c in '?#"\\ <>')):
            raise ConfigError(f"--root-path {self.root_path}: write it as /FOLDER, e.g. /evburst")
        for name in self.allow_hosts:
            if (
                not name
                or any(c in name for c in "/@#?: ")
                or "*" in name[1:]
                or (name[0] == "*" and name[1:2] not in ("", "."))
            ):
                raise ConfigError(f"--allow-host {name}: expected a name without scheme and port, e.g. lab.example")


class PageServer:
    """Serves the page of one run until `stop`.

    Args:
        pipeline: the pipeline to show and control.
        site: address of the page.

    Attributes:
        broadcaster: viewer that passes results to the clients.
        url: URL of the page, including the token if one is required.

    Raises:
        ConfigError: the address is malformed or in use.
    """

    def __init__(self, pipeline: LivePipeline, site: Site) -> None:
        host, port = _host_port(site.address)
        self._listener = _listen(host, port)
        port = self._listener.getsockname()[1]
        loopback = _is_loopback(host)
        token = None if loopback else secrets.token_urlsafe(16)
        url_host = f"[{host}]" if ":" in host else host
        self.url = f"http://{url_host}:{port}{site.root_path.rstrip('/')}/" + (f"?token={token}" if token else "")
        # Windows deletes no file that is being downloaded, not even at the end.
        self._folder = tempfile.TemporaryDirectory(prefix="evburst_live_", ignore_cleanup_errors=True)
        self._commands = Commands(pipeline, Path(self._folder.name))
        self.broadcaster = Broadcaster(pipeline)
        pipeline.viewers.append(self.broadcaster)
        width, height = pipeline.source.sensor_size
        config = uvicorn.Config(
            guarded(_application(self.broadcaster, self._commands, site.root_path), site, loopback, token),
            log_config=None,  # uvicorn's closes every handler of the process's loggers
            log_level="critical",
            http=HttpProtocol,
            ws=WebSocketProtocol,
            backlog=16,
            ws_max_size=max(width * height + PICTURE_HEADER.size, _MAX_TEXT),
            ws_max_queue=4,
            ws_ping_interval=10.0,
            ws_ping_timeout=connections.STALLED_S,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        if not loopback:
            text = "%s is reachable from other machines without encryption: anyone with the token can watch and control it"
            _LOG.warning(text, site.address)
        elif site.allow_hosts:
            text = "anyone who can reach %s can watch and control it: require a password in the proxy"
            _LOG.warning(text, ", ".join(site.allow_hosts))
        _LOG.info("page: %s", self.url)

    def stop(self) -> None:
        """Close all connections and delete the page's recordings."""
        self._server.should_exit = True
        self._thread.join(5.0)
        self._commands.close()
        self._folder.cleanup()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_exception_handler(_ErrorLog().handle)
        await self._server.serve(sockets=[self._listener])


class _ErrorLog:
    """Logs each connection error at most once a minute; asyncio repeats one per attempt when file descriptors run out."""

    def __init__(self) -> None:
        self._logged_s: dict[str, float] = {}

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See asyncio's set_exception_handler."""
        error = context.get("exception")
        if isinstance(error, ConnectionError):  # on Windows, asyncio reports clients that leave without a farewell
            return
        text = f"{type(error).__name__}: {error}" if error else str(context.get("message"))
        if isinstance(error, OSError):
            text = str(error.strerror)
        if loop.time() - self._logged_s.get(text, float("-inf")) >= _REPEAT_S:
            self._logged_s[text] = loop.time()
            _LOG.warning("page: %s", text)


def guarded(application: ASGIApp, site: Site, loopback: bool, token: str | None) -> ASGIApp:
    """Wrap an application in the access checks that the module's docstring describes.

    Args:
        application: the application to protect.
        site: address of the page.
        loopback: whether the server is bound to a loopback address.
        token: token that clients must send; None on loopback.
    """

    root = unquote(site.root_path.rstrip("/"))

    async def in_folder(scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn's root_path assumes that the proxy strips the prefix; here both kinds of proxy must work, also if the prefix
        # is the path of something that is served.
        path = scope["path"]
        if path == root and scope["type"] == "http" and path != _SERVED["http"]:
            # Without scheme and host, of which the proxy may have replaced both.
            query = scope["query_string"].decode("latin-1")
            folder = RedirectResponse(site.root_path.rstrip("/") + "/" + (f"?{query}" if query else ""))
            await folder(scope, receive, send)
            return
        await application({**scope, "root_path": root if path.startswith(f"{root}/") else ""}, receive, send)

    guard: ASGIApp = Guard(in_folder, site.allow_hosts, token)
    if loopback or site.allow_hosts:
        host = _host_port(site.address)[0]
        own_host = f"[{host}]" if ":" in host else host
        names = ["localhost", "127.0.0.1", "[::1]", own_host, *site.allow_hosts]
        guard = TrustedHostMiddleware(guard, names, www_redirect=False)
    return guard


def _application(broadcaster: Broadcaster, commands: Commands, root_path: str) -> FastAPI:
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    markup, policy = page(root_path.rstrip("/")), content_security_policy()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    @application.api_route("/", methods=["GET", "HEAD"])
    async def index() -> HTMLResponse:
        return HTMLResponse(markup, headers=headers)

    @application.get(_SERVED["http"], response_model=None)
    def recording() -> StreamingResponse | PlainTextResponse:
        opened = commands.open_finished()
        if opened is None:
            return PlainTextResponse("nothing has been recorded yet\n", 404)
        file, size = opened
        name = time.strftime("live_%Y%m%d_%H%M%S.dat")
        attachment = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)}
        download_headers = {"Cache-Control": "no-store", **attachment}
        return StreamingResponse(_chunks(file, commands), media_type="application/octet-stream", headers=download_headers)

    @application.websocket(_SERVED["websocket"])
    async def live(socket: WebSocket) -> None:
        await socket.accept()  # also to refuse: browsers do not tell a page why a handshake failed
        if broadcaster.clients >= _MAX_CLIENTS:
            with suppress(WebSocketDisconnect):
                await socket.send_text(json.dumps({"error": f"{_MAX_CLIENTS} pages are open already"}))
                await socket.close(1013)
            return
        await _Client(socket, broadcaster, commands).run()

    return application


def _chunks(file: IO[bytes], commands: Commands) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
        commands.note_download(file)


class Allowance:
    """Rate limit of a client's commands: bursts of 25, 50 per second; further commands wait in the client's connection."""

    def __init__(self, now_s: float) -> None:
        self._left, self._counted_s = float(_COMMANDS_AT_ONCE), now_s

    def wait_s(self, now_s: float) -> float:
        """Count a command and return the time in s that it has to wait."""
        self._left = min(self._left + (now_s - self._counted_s) * _COMMANDS_PER_S, _COMMANDS_AT_ONCE) - 1
        self._counted_s = now_s
        return max(-self._left / _COMMANDS_PER_S, 0.0)


class _Client:
    """One websocket: sends the newest results, receives commands and pictures."""

    def __init__(self, socket: WebSocket, broadcaster: Broadcaster, commands: Commands) -> None:
        self._socket, self._broadcaster, self._commands = socket, broadcaster, commands
        self._send_lock = asyncio.Lock()
        self._allowance = Allowance(time.perf_counter())

    async def run(self) -> None:
        """Serve the client until it leaves or reads nothing for `connections.STALLED_S`."""
        with self._broadcaster.client() as view:
            tasks = [asyncio.create_task(work) for work in (self._send(view), self._receive(view))]
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(self._commands.leave, self)
        # The client's slot is already free: one that does not read does not answer the closing handshake either.
        with suppress(RuntimeError, TimeoutError):
            await asyncio.wait_for(self._socket.close(), _HEARTBEAT_S)

    async def _send(self, view: View) -> None:
        seen, about = 0, self._broadcaster.about()
        await self._send_text({"run": self._commands.run} | about | self._commands.state(self))
        state_sent_s = time.perf_counter()
        while True:
            seen, message = await self._broadcaster.next(seen, _HEARTBEAT_S, view)
            if message is not None:
                async with self._send_lock:
                    await asyncio.wait_for(self._socket.send_bytes(message), connections.STALLED_S)
                view.sent += 1
            if time.perf_counter() - state_sent_s >= _HEARTBEAT_S:
                previous, about = about, self._broadcaster.about()
                await self._send_text((about if about != previous else {}) | self._commands.state(self))
                state_sent_s = time.perf_counter()

    async def _receive(self, view: View) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    answer = await self._handle(view, message.get("text"), message.get("bytes"))
                except RefusedError as error:
                    answer = {"error": str(error), **_refused_action(message.get("text"))}
                if answer is not None:
                    await self._send_text(answer | {"answer": True})

    async def _handle(self, view: View, text: str | None, data: bytes | None) -> dict[str, Any] | None:
        if data is not None:
            self._commands.accept_picture(self, data)
            return None
        if text is None or len(text) > _MAX_TEXT:
            raise RefusedError(f"a message has at most {_MAX_TEXT} characters")
        try:
            command = json.loads(text)
        except (ValueError, RecursionError):
            raise RefusedError("not JSON") from None
        if isinstance(command, dict) and command.keys() == {"received"} and isinstance(command["received"], int):
            view.received = command["received"]
            return None
        await asyncio.sleep(self._allowance.wait_s(time.perf_counter()))
        if isinstance(command, dict) and command and command.keys() <= _OF_VIEW:
            for name, value in command.items():
                setattr(view, name, value is True)
            return self._commands.state(self)
        return await asyncio.to_thread(self._commands.execute, self, command)

    async def _send_text(self, content: dict[str, Any]) -> None:
        async with self._send_lock:
            await asyncio.wait_for(self._socket.send_text(json.dumps(content)), connections.STALLED_S)


def _refused_action(text: str | None) -> dict[str, str]:
    """Return {"to": action} for a message that asked for an action, else {}."""
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        return {"to": str(json.loads(text or "")["do"])[:50]}
    return {}


def _host_port(address: str) -> tuple[str, int]:
    with suppress(ValueError):
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port is not None and not parts.path:
            return parts.hostname, parts.port
    raise ConfigError(f"--serve {address}: write it as HOST:PORT, e.g. 127.0.0.1:8000")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while attempting")[0]  # create_server adds the address
        raise ConfigError(f"--serve {host}:{port}: cannot listen there ({reason}); try another port") from None
    # Buffered results are out of date when they are read, so a slow client must not have megabytes of them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
