"""The page's server: what it shows, what it obeys, whom it refuses, and that nothing a client does holds up detection."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shutil
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest

from evburst.app.console import messages
from evburst.app.detect import DetectConfig
from evburst.app.live.frames import FakeCamera, FrameSource, PushedFrames
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.sources import LiveSource, RecordingSource
from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.data.writers import write_events
from tests.conftest import random_events
from tests.event_files import fed
from tests.helpers.in_use import refuse_files_in_use
from tests.helpers.waiting import wait_until

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
websockets = pytest.importorskip("websockets")

from uvicorn.server import ServerState  # noqa: E402
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402

from evburst.app.live import broadcast, commands, connections  # noqa: E402
from evburst.app.live import server as server_module  # noqa: E402
from evburst.app.live.broadcast import pack_picture  # noqa: E402
from evburst.app.live.server import PageServer, Site, guarded  # noqa: E402
from evburst.app.outputs.render import palette  # noqa: E402
from evburst.app.runs import traffic_figures  # noqa: E402

SIZE = SensorSize(64, 48)
PICTURE = struct.pack("<4sHH", b"EVB1", *SIZE) + bytes(64 * 48)


def make_pipeline(source: LiveSource | None = None) -> LivePipeline:
    """A small pipeline with the fake camera."""
    source = source or FrameSource(FakeCamera(SIZE, 50.0), SIZE, SimulatorConfig(shot_hz=5), 20_000, upsample=False)
    return LivePipeline(source, LiveConfig(DetectConfig(ann=True, window_ms=20.0)), lambda line: None)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[LivePipeline, PageServer]]:
    """A running pipeline and its page."""
    pipeline = make_pipeline()
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    yield pipeline, server
    server.stop()
    pipeline.stop()


def open_socket(server: PageServer, **options: Any) -> ClientConnection:
    """A websocket to the page's server."""
    address = server.url.replace("http", "ws").replace("/?", "/live?").removesuffix("/")
    options.setdefault("max_queue", None)  # a client that stops reading would wait ten seconds for the end of its connection
    return connect(address + ("" if "?" in server.url else "/live"), proxy=None, **options)


def ask(client: ClientConnection, command: object) -> dict[str, Any]:
    """Send a command (or anything), and wait for the answer: a state, or an error."""
    client.send(command if isinstance(command, str | bytes) else json.dumps(command))
    return wait_for(client, lambda message: "answer" in message)


def wait_for(client: ClientConnection, wanted: Any, seconds: float = 20.0) -> dict[str, Any]:
    """The next text message that is wanted."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        message = client.recv(timeout=seconds)
        if isinstance(message, str) and wanted(message := json.loads(message)):
            return message  # type: ignore[no-any-return]
    raise AssertionError("no such message")


def get(server: PageServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a request."""
    return get_from(server.url.partition("/?")[0].rstrip("/") + path, **headers)


def get_from(address: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """The same, of a whole address."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {}


def test_the_server_leaves_the_logging_of_the_process_as_it_is() -> None:
    """uvicorn's own settings would close all handlers; absl's, which OpenVINO imports, closes the stream that it writes to."""
    closed = list[bool]()

    class Handler(logging.StreamHandler[io.StringIO]):
        def close(self) -> None:
            closed.append(True)
            super().close()

    pipeline, handler = make_pipeline(), Handler(io.StringIO())
    PageServer(pipeline, Site("127.0.0.1:0")).stop()
    assert not closed
    handler.close()
    assert closed
    assert not logging.getLogger("uvicorn").handlers


def test_the_page_is_one_document_without_outside_parts(served: tuple[LivePipeline, PageServer]) -> None:
    status, body, headers = get(served[1], "/")
    text = body.decode()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "/* script */" not in text
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in text, outside


def test_a_check_of_the_page_gets_its_headers_alone(served: tuple[LivePipeline, PageServer]) -> None:
    """Monitors and proxies ask with HEAD whether a page is there."""
    _, body, headers = get(served[1], "/")
    request = urllib.request.Request(served[1].url, method="HEAD")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        assert (answer.status, answer.read()) == (200, b"")
        assert int(answer.headers["content-length"]) == len(body)
        assert answer.headers["content-security-policy"] == headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/page.js", "/docs", "/openapi.json", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page/page.css", "//etc/passwd",
     "/recording.dat/../server.py", "/static/", "/0.dat", "/%00", "/recording.dat%00"],
)  # fmt: skip
def test_nothing_else_is_served(served: tuple[LivePipeline, PageServer], path: str) -> None:
    status, body, _ = get(served[1], path)
    assert status in (400, 404)
    assert b"root:" not in body


def test_results_arrive_with_their_picture(served: tuple[LivePipeline, PageServer]) -> None:
    with open_socket(served[1]) as client:
        about = json.loads(client.recv(timeout=20))
        assert (about["sensor_size"], about["classes"], about["simulated"]) == ([64, 48], ["car", "pedestrian"], True)
        message = next(m for m in iter(lambda: client.recv(timeout=20), None) if isinstance(m, bytes))
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    assert {"boxes", "events_per_s", "latency_ms", "spikes", "energy_uj", "ann_uj", "windows", "dropped"} <= header.keys()
    assert len(message) == 4 + length + 64 * 48 // 4


@pytest.mark.parametrize("size", [SensorSize(5, 3), SensorSize(8, 8), SensorSize(1, 1)])
def test_pictures_are_packed_four_pixels_to_a_byte(size: SensorSize) -> None:
    grid = np.random.default_rng(0).integers(0, 3, (4, size.height + 2, size.width + 1)).astype(np.uint8)
    packed = pack_picture(grid, size)
    unpacked = ((packed[:, None] >> np.array([0, 2, 4, 6])) & 3).reshape(-1)[: size.width * size.height]
    off, on = grid[:2, : size.height, : size.width].sum(0), grid[2:, : size.height, : size.width].sum(0)
    expected = np.where((on > 0) & (on >= off), 2, np.where(off > 0, 1, 0))
    np.testing.assert_array_equal(unpacked.reshape(size.height, size.width), expected)


def test_settings_are_obeyed_and_kept_in_bounds(served: tuple[LivePipeline, PageServer]) -> None:
    with open_socket(served[1]) as client:
        assert ask(client, {"set": {"score": 0.71}})["score"] == 0.71
        assert ask(client, {"set": {"score": 99}})["score"] == 0.99
        assert ask(client, '{"set": {"score": -1' + "0" * 400 + "}}")["score"] == 0.01
        assert ask(client, {"set": {"contrast": 0.4}})["contrast"] == 0.4
        assert "no timesteps" in ask(client, {"set": {"timesteps": 2}})["error"]


def test_a_recording_is_sought_by_number_and_other_sources_are_not(
    served: tuple[LivePipeline, PageServer], tmp_path: Any
) -> None:
    write_events(tmp_path / "a.dat", random_events(500, SIZE, 100_000), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=True)
    server = PageServer(make_pipeline(source), Site("127.0.0.1:0"))
    with open_socket(server) as client:
        assert "its length is not known" in ask(client, {"set": {"position": 0.05}})["error"]
        source.open()
        state = wait_for(client, lambda message: message.get("duration_s"))
        source.close()
        assert (state["position_s"], state["duration_s"]) == (0, pytest.approx(0.1))
        assert ask(client, {"set": {"position": 0.05}})["position_s"] == 0.05
        assert ask(client, {"set": {"position": -3}})["position_s"] == 0
        assert ask(client, {"set": {"position": 1e300}})["position_s"] == pytest.approx(0.08)
    server.stop()
    with open_socket(served[1]) as client:
        assert ask(client, {"set": {"position": 0.05}})["error"] == "only a recording can be sought"
        assert ask(client, {"set": {}})["duration_s"] is None


def results(client: ClientConnection, states: int) -> int:
    """Number of results that arrive before the next states, of which there are two a second."""
    count = 0
    while states:
        message = client.recv(timeout=20)
        count += isinstance(message, bytes)
        states -= isinstance(message, str) and "answer" not in json.loads(message)
    return count


def test_a_pause_is_that_of_one_viewer(served: tuple[LivePipeline, PageServer]) -> None:
    with open_socket(served[1]) as client, open_socket(served[1]) as other:
        before = ask(client, {"paused": True})["windows"]
        assert (results(client, 3), results(other, 3) > 5) == (0, True)
        assert served[1].broadcaster.paused is False
        assert ask(client, {"paused": False})["windows"] > before + 5
        assert results(client, 2) > 2


def test_a_viewer_that_reports_what_it_received_is_sent_no_more_than_three_results_ahead(
    served: tuple[LivePipeline, PageServer],
) -> None:
    with open_socket(served[1]) as client:
        client.send(json.dumps({"received": 0}))
        wait_until(lambda: served[1].broadcaster._views[-1].received == 0)
        results(client, 2)
        sent = served[1].broadcaster._views[-1].sent
        assert sent >= 3
        assert results(client, 2) == 0
        client.send(json.dumps({"received": sent - 1}))
        assert results(client, 2) == 2
        client.send(json.dumps({"received": sent + 2}))
        assert results(client, 2) == 3


def test_a_recording_stands_still_while_everybody_has_paused(tmp_path: Any) -> None:
    write_events(tmp_path / "a.dat", random_events(5000, SIZE, 60_000_000), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=True)
    pipeline = make_pipeline(source)
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    with open_socket(server) as client, open_socket(server) as other:
        ask(client, {"paused": True})
        before_s = source.position_s
        wait_until(lambda: source.position_s > before_s + 0.2)  # the other one still watches
        ask(other, {"paused": True})
        positions_s = [-1.0, source.position_s]
        while positions_s[-1] != positions_s[-2]:  # a slice that has begun is still played
            positions_s.append(wait_for(other, lambda message: "answer" not in message)["position_s"])
        ask(client, {"paused": False})
        wait_until(lambda: source.position_s > positions_s[-1])
        assert source.position_s < positions_s[-1] + 10  # it continues from there
        ask(client, {"paused": True})
        client.close()
        other.close()
        wait_until(lambda: server.broadcaster.clients == 0)
        before_s = source.position_s
        wait_until(lambda: source.position_s > before_s)  # nobody watches
    server.stop()
    pipeline.stop()


@pytest.mark.parametrize("ann", [False, True])
def test_energy_is_sent_for_every_spike_and_for_differences_from_silence(ann: bool) -> None:
    pipeline = LivePipeline(make_pipeline().source, LiveConfig(DetectConfig(ann=ann, timesteps=None if ann else 1)))
    network = pipeline.network
    size, window_us = network.inference.sensor_size, network.inference.voxel.window_us
    headers = []
    for events in (random_events(0, size, window_us), random_events(200, size, window_us)):
        binned = network.inference.bin(EventWindow(0, window_us, events), network.inference.new_grid())
        (result,) = network.inference.run([binned])
        message = broadcast.encode(broadcast._Shown(result, network, None, 1, 0), size, False)  # private: what `show` keeps
        headers.append(json.loads(message[4 : 4 + struct.unpack_from("<I", message)[0]]))
        assert headers[-1]["events"] == len(events)
    idle, busy = headers
    if ann:
        assert busy["energy_uj"] == busy["ann_uj"]
        assert busy["traffic"] is idle["traffic"] is None
        assert busy["beyond_silence_uj"] is idle["beyond_silence_uj"] is None
    else:
        assert 0 < busy["beyond_silence_uj"] < busy["energy_uj"] < busy["ann_uj"]
        assert idle["idle"]
        assert idle["energy_uj"] == idle["beyond_silence_uj"] == 0
        expected = traffic_figures(result.totals, network.inference, "int8")
        assert expected is not None
        assert busy["traffic"] == {
            "uj": round(expected["total_pj"] / 1e6, 1),
            "share_of_ann": round(expected["share_of_ann"], 4),
        }
        assert idle["traffic"] is None


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "null", "7", '{"set": 1}', '{"set": {"score": "high"}}', '{"set": {"score": true}}',
     '{"set": {"score": NaN}}', '{"set": {"score": 1e999}}', '{"set": {"path": 1}}', '{"do": "exit"}', '{"do": 1}',
     '{"do": "record", "set": {}}', '{"paused": true, "do": "record"}', "[" * 900, "x" * 1001, b"", b"EVB1", PICTURE,
     b"\xff" * 3000],
)  # fmt: skip
def test_what_makes_no_sense_is_answered_with_an_error(served: tuple[LivePipeline, PageServer], message: str | bytes) -> None:
    with open_socket(served[1]) as client:
        client.send(message)
        assert wait_for(client, lambda message: "error" in message)["error"]
        assert "status" in ask(client, {"set": {}})


def test_a_message_that_is_too_long_ends_that_connection_only(served: tuple[LivePipeline, PageServer]) -> None:
    with open_socket(served[1]) as other, open_socket(served[1]) as client:
        client.send(bytes(200_000))
        with pytest.raises(ConnectionClosed) as closed:
            wait_for(client, lambda message: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert "status" in ask(other, {"set": {}})


def random_message(rng: np.random.Generator) -> str | bytes:
    """Noise, or a command with something wrong or right in it."""
    kind = rng.integers(5)
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 200)))
    if kind == 1:
        return PICTURE[: int(rng.integers(0, 20))] + rng.bytes(int(rng.integers(0, 3200)))
    if kind == 2:
        return "".join(chr(c) for c in rng.integers(1, 0xD7FF, int(rng.integers(0, 60))))
    words = [
        "set",
        "do",
        "score",
        "timesteps",
        "contrast",
        "paused",
        "inset",
        "camera_off",
        "",
        "__class__",
        1e300,
        -1,
        None,
        True,
    ]
    name, key, value = (words[i] for i in rng.integers(0, len(words), 3))
    return json.dumps({str(name): {str(key): value} if kind == 3 else value})


@pytest.mark.slow
def test_ten_thousand_random_messages_do_not_end_the_server(served: tuple[LivePipeline, PageServer]) -> None:
    pipeline, server = served
    rng = np.random.default_rng(0)
    before = pipeline.figures.windows
    sent = 0
    while sent < 10_000:
        with suppress(ConnectionClosed), open_socket(server) as client:
            for _ in range(500):
                client.send(random_message(rng))
                sent += 1
                while sent % 25 == 0 and not isinstance(client.recv(timeout=20), bytes):
                    break
    with open_socket(server) as client:
        assert "status" in ask(client, {"set": {}})
        deadline = time.perf_counter() + 20
        while time.perf_counter() < deadline and pipeline.figures.windows <= before:
            time.sleep(0.05)
    assert pipeline.figures.windows > before


def test_a_client_that_stops_reading_holds_up_nobody(served: tuple[LivePipeline, PageServer]) -> None:
    pipeline, server = served
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        request = (
            f"GET /live HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        stalled.sendall(request.encode())
        time.sleep(0.5)
        began, times = pipeline.figures.windows, []
        show = server.broadcaster.show

        def timed(*args: Any) -> None:
            started = time.perf_counter()
            show(*args)
            times.append(time.perf_counter() - started)

        server.broadcaster.show = timed  # type: ignore[method-assign]
        with open_socket(server) as client:
            received = sum(isinstance(client.recv(timeout=20), bytes) for _ in range(15))
        server.broadcaster.show = show  # type: ignore[method-assign]
        assert received >= 5
        assert pipeline.figures.windows > began


def raw_socket(server: PageServer, request: str = "") -> socket.socket:
    """A TCP connection to the page's server that takes little, with a request sent."""
    host, _, port = server.url.removeprefix("http://").partition("/")[0].rpartition(":")
    peer = socket.create_connection((host, int(port)))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    peer.settimeout(30)
    peer.sendall(request.format(host=f"{host}:{port}").encode())
    return peer


def is_closed(peer: socket.socket) -> bool:
    """Whether the other side has ended the connection, once what it sent has been read."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def test_connections_that_ask_for_nothing_are_ended(
    monkeypatch: pytest.MonkeyPatch, served: tuple[LivePipeline, PageServer]
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.2)
    for request in ("", "GET / HTTP/1.1\r\nHost: {host}\r\nX-Slow: ", "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"):
        with raw_socket(served[1], request) as peer:
            assert is_closed(peer)


def test_many_idle_connections_keep_nobody_out(served: tuple[LivePipeline, PageServer]) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(raw_socket(served[1])) for _ in range(3 * connections.MAX_IDLE)]
        assert get(served[1], "/")[0] == 200
        with open_socket(served[1]) as client:
            assert "sensor_size" in json.loads(client.recv(timeout=20))
            assert is_closed(idle[0])  # the oldest made room
            assert "status" in ask(client, {"set": {}})


def test_a_burst_of_connections_leaves_no_more_idle_ones_than_the_limit(served: tuple[LivePipeline, PageServer]) -> None:
    """The loop accepts several connections before it removes one that was ended."""
    ended = list[int]()

    class Transport(asyncio.Transport):
        def __init__(self, number: int) -> None:
            super().__init__({"peername": ("127.0.0.1", number)})
            self.number = number

        def abort(self) -> None:
            ended.append(self.number)

    async def burst(n: int) -> None:
        config, state = served[1]._server.config, ServerState()  # private: uvicorn's settings
        protocols = [connections.HttpProtocol(config, state, {}) for _ in range(n)]
        for number, protocol in enumerate(protocols):
            protocol.connection_made(Transport(number))
        for protocol in protocols:
            protocol.connection_lost(ConnectionAbortedError())

    asyncio.run(burst(3 * connections.MAX_IDLE))
    assert ended == list(range(2 * connections.MAX_IDLE))  # the oldest, each once


def test_a_viewer_beyond_the_limit_learns_why(monkeypatch: pytest.MonkeyPatch, served: tuple[LivePipeline, PageServer]) -> None:
    _, server = served
    wait_until(lambda: server.broadcaster.clients == 0)  # those of other tests have gone
    monkeypatch.setattr(server_module, "_MAX_CLIENTS", 2)  # private: a limit that nobody sets
    with open_socket(server) as client, open_socket(server), open_socket(server) as refused:
        assert json.loads(refused.recv(timeout=20)) == {"error": "2 pages are open already"}
        with pytest.raises(ConnectionClosed) as closed:
            refused.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert "status" in ask(client, {"set": {}})
    wait_until(lambda: server.broadcaster.clients == 0)
    with open_socket(server) as client:
        assert "sensor_size" in json.loads(client.recv(timeout=20))


def test_viewers_that_never_read_lose_their_place(
    monkeypatch: pytest.MonkeyPatch, served: tuple[LivePipeline, PageServer]
) -> None:
    pipeline, server = served
    # Private limits, which nobody sets: here seconds and clients are few.
    monkeypatch.setattr(connections, "IDLE_S", 1.0)
    monkeypatch.setattr(server_module, "_MAX_CLIENTS", 3)
    monkeypatch.setattr(broadcast, "encode", lambda *_: bytes(1 << 20))  # they fill what the system holds for them
    request = (
        "GET /live HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    wait_until(lambda: server.broadcaster.clients == 0)  # those of other tests have gone; one more would not be let in
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(raw_socket(server, request))
        wait_until(lambda: server.broadcaster.clients == 3)
        # Not earlier: on a busy machine the first viewer would be gone before the third has come.
        monkeypatch.setattr(connections, "STALLED_S", 0.5)
        wait_until(lambda: server.broadcaster.clients == 0)
        wait_until(lambda: not server._server.server_state.connections)  # private: uvicorn's own count
    assert pipeline.figures.windows > 0


def test_complaints_are_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    # Private: a process that runs out of files would take the tests with it.
    loop, complaints = asyncio.new_event_loop(), server_module._ErrorLog()
    full = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with messages(logging.INFO):
        for _ in range(1000):
            complaints.handle(loop, full)
        complaints.handle(loop, {"message": "other"})
        complaints.handle(loop, {"message": "lost", "exception": ConnectionResetError(10054, "the client left")})
    loop.close()
    assert capsys.readouterr().err == "warning: page: Too many open files\nwarning: page: other\n"


def test_a_flood_of_commands_waits() -> None:
    allowance = server_module.Allowance(0.0)
    assert [allowance.wait_s(0.0) for _ in range(25)] == [0.0] * 25
    assert [allowance.wait_s(0.0) for _ in range(3)] == pytest.approx([0.02, 0.04, 0.06])
    now_s, commands = 0.0, 0
    while now_s < 10:  # who sends as soon as the one before has been obeyed
        now_s += allowance.wait_s(now_s)
        commands += 1
    assert 490 <= commands <= 510
    assert allowance.wait_s(1000.0) == 0.0


def test_a_download_survives_recordings_that_come_after_it(served: tuple[LivePipeline, PageServer]) -> None:
    _, server = served
    kept = server._commands  # private: files held open as a slow download holds them
    with open_socket(server) as client:
        files = []
        for _ in range(4):
            ask(client, {"do": "record"})
            wait_for(client, lambda message: (message.get("recording") or 0) > 0)
            ask(client, {"do": "stop"})
            files.append(kept.open_finished())
    held = [(opened[0].read(), opened[1]) for opened in files if opened]
    assert [len(content) for content, _ in held] == [size for _, size in held]
    assert len({content for content, _ in held}) == 4
    assert len(list(kept._folder.glob("*.dat"))) == 1  # the others are gone with their last reader
    for opened in files:
        opened[0].close()  # type: ignore[index]


def test_a_recording_that_windows_does_not_delete_yet_is_deleted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    refuse_files_in_use(monkeypatch)
    files, counts = [], []
    with open_socket(server) as client:
        for _ in range(3):
            ask(client, {"do": "record"})
            assert "error" not in ask(client, {"do": "stop"})
            files.append(server._commands.open_finished())  # private, as above
            counts.append(len(list(server._commands._folder.glob("*.dat"))))
            if len(files) == 2:
                for opened in files:
                    opened[0].close()  # type: ignore[index]
    assert counts == [1, 2, 1]
    server.stop()  # although a download is not over
    pipeline.stop()
    files[2][0].close()  # type: ignore[index]
    shutil.rmtree(server._commands._folder)


def test_a_port_in_use_is_reported_in_the_words_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_server(*_: object, **__: object) -> None:
        raise OSError(10048, "Only one usage of each address is permitted (while attempting to bind on address ('::1', 80))")

    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(ConfigError, match=r"cannot listen there \(Only one usage of each address is permitted\); try another"):
        PageServer(make_pipeline_of_nothing(), Site("127.0.0.1:80"))


def test_a_recording_is_downloaded_and_read(served: tuple[LivePipeline, PageServer], tmp_path: Any) -> None:
    _, server = served
    with open_socket(server) as client:
        assert ask(client, {"do": "record"})["recording"] is not None
        time.sleep(1.0)
        state = ask(client, {"do": "stop"})
    assert (state["recording"], state["recorded"]) == (None, True)
    status, body, headers = get(server, "/recording.dat")
    assert status == 200
    assert "attachment" in headers["content-disposition"]
    (tmp_path / "a.dat").write_bytes(body)
    stream = open_events(tmp_path / "a.dat")
    assert stream.sensor_size == SIZE
    assert sum(len(packet) for packet in stream.packets()) > 0


def test_a_recording_that_is_full_ends_and_every_page_says_so(
    monkeypatch: pytest.MonkeyPatch, served: tuple[LivePipeline, PageServer], tmp_path: Any
) -> None:
    _, server = served
    with open_socket(server) as client, open_socket(server) as other:
        monkeypatch.setattr(commands, "MAX_RECORDING_BYTES", 1 << 10)
        ask(client, {"do": "record"})
        for page in (client, other):
            state = wait_for(page, lambda message: message.get("recording_stopped"))
            assert (state["recording"], state["recorded"]) == (None, True)
            assert "reached its limit" in state["recording_stopped"]
        (tmp_path / "a.dat").write_bytes(get(server, "/recording.dat")[1])
        assert sum(len(packet) for packet in open_events(tmp_path / "a.dat").packets()) > 50
        assert ask(client, {"do": "stop"})["recording_stopped"]  # as before: it has ended
        monkeypatch.undo()
        assert ask(client, {"do": "record"})["recording_stopped"] == ""
        assert ask(client, {"do": "stop"})["recording_stopped"] == ""


@pytest.mark.parametrize("ending", ["recording", "finished", "downloaded"])
def test_a_recording_that_is_lost_at_the_end_is_reported(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = make_pipeline()
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    with open_socket(server) as client:
        ask(client, {"do": "record"})
        wait_for(client, lambda message: (message.get("recording") or 0) > 0)
        if ending != "recording":
            ask(client, {"do": "stop"})
    if ending == "downloaded":
        get(server, "/recording.dat")
    with messages(logging.INFO):
        server.stop()
    pipeline.stop()
    warning = r"warning: the recording made on the page \([\d,]+ events\) was not downloaded and is deleted\n"
    assert re.fullmatch("" if ending == "downloaded" else warning, capsys.readouterr().err)


def test_a_recording_is_seen_to_grow_while_results_arrive(served: tuple[LivePipeline, PageServer]) -> None:
    with open_socket(served[1]) as client:
        ask(client, {"do": "record"})
        assert "answer" not in wait_for(client, lambda message: message.get("recording", 0) > 0)
        ask(client, {"do": "stop"})


def test_the_pages_own_camera_becomes_the_source_until_it_leaves(served: tuple[LivePipeline, PageServer]) -> None:
    pipeline, server = served
    own = pipeline.source
    with open_socket(server) as client, open_socket(server) as other:
        assert ask(client, {"do": "camera_on"})["source"] == "the page's camera"
        assert "another page" in ask(other, {"do": "camera_on"})["error"]
        other.send(PICTURE)
        assert "not in use" in wait_for(other, lambda message: "error" in message)["error"]
        client.send(PICTURE[:-1])
        assert "grey bytes" in wait_for(client, lambda message: "error" in message)["error"]
        source, before = pipeline.source, pipeline.figures.windows
        for k in range(40):
            client.send(PICTURE[:8] + bytes([100 + 40 * (k % 2)]) * (64 * 48))
            time.sleep(0.02)
        assert source is not own
        deadline = time.perf_counter() + 20
        while time.perf_counter() < deadline and pipeline.figures.windows < before + 3:
            time.sleep(0.05)
        assert pipeline.figures.windows >= before + 3
    deadline = time.perf_counter() + 20
    while time.perf_counter() < deadline and pipeline.source is not own:
        time.sleep(0.05)
    assert pipeline.source is own


def test_only_its_own_page_stops_a_camera(served: tuple[LivePipeline, PageServer]) -> None:
    pipeline, server = served
    own = pipeline.source
    with open_socket(server) as client, open_socket(server) as other:
        assert ask(client, {"do": "camera_on"})["own_camera"]
        refused = ask(other, {"do": "camera_on"})
        assert (refused["error"], refused["to"]) == ("another page's camera is in use", "camera_on")
        assert "this page's camera is not in use" in ask(other, {"do": "camera_off"})["error"]
        state = ask(other, {"set": {}})
        assert (state["page_camera"], state["own_camera"]) == (True, False)
        assert pipeline.source is not own
        assert not ask(client, {"do": "camera_off"})["page_camera"]
        assert pipeline.source is own


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_camera_does_not_take_the_place_of_a_pipe(tmp_path: Path) -> None:
    write_events(tmp_path / "a.csv", random_events(20_000, SIZE, 400_000), SIZE)
    left = Event()
    writer = fed(tmp_path / "pipe", (tmp_path / "a.csv").read_bytes(), left)
    pipeline = make_pipeline(RecordingSource(tmp_path / "pipe", 20_000, SIZE, loop=True))
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    try:
        with open_socket(server) as client:
            refused = ask(client, {"do": "camera_on"})
            assert (refused["error"].partition(",")[0], refused["to"]) == ("pipe: a pipe can be read only once", "camera_on")
            assert not ask(client, {"set": {}})["page_camera"]
        wait_until(lambda: server.broadcaster.clients == 0 or pipeline.wait(0))
        wait_until(lambda: pipeline.figures.windows + pipeline.dropped >= 19 or pipeline.wait(0))
        assert pipeline.source.name == "pipe"
    finally:
        left.set()
        server.stop()
        pipeline.stop()
        writer.join(60)


def test_networks_and_weights_are_chosen_by_name(
    monkeypatch: pytest.MonkeyPatch, served: tuple[LivePipeline, PageServer]
) -> None:
    pipeline, server = served
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(pipeline, "set_network", lambda **settings: asked.append(settings))
    with open_socket(server) as client:
        about = json.loads(client.recv(timeout=20))
        assert {"street", "caltech6"} <= set(about["weights_choices"])
        assert about["palette"] == palette()
        ask(client, {"set": {"network": "snn"}})
        ask(client, {"set": {"weights": "caltech6"}})
        assert "choices are ann, snn" in ask(client, {"set": {"network": "cnn"}})["error"]
        assert "choices are" in ask(client, {"set": {"weights": "/etc/passwd"}})["error"]
    assert asked == [{"ann": False}, {"weights": "caltech6"}]


def test_the_sources_picture_is_sent_to_who_wants_it(served: tuple[LivePipeline, PageServer]) -> None:
    def picture(client: ClientConnection) -> bytes:
        message = next(m for m in iter(lambda: client.recv(timeout=20), None) if isinstance(m, bytes))
        (length,) = struct.unpack_from("<I", message)
        return message[4 + length + 64 * 48 // 4 :]

    with open_socket(served[1]) as client, open_socket(served[1]) as other:
        ask(client, {"inset": True})
        wait_until(lambda: picture(client))
        decoded = cv2.imdecode(np.frombuffer(picture(client), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert decoded.shape == (48, 64)
        assert picture(other) == b""
        ask(client, {"inset": False})
        wait_until(lambda: not picture(client))


def test_behind_a_reverse_proxy_the_page_works() -> None:
    """Whether the proxy takes its folder off the path or not, and whichever Host it sends."""
    pipeline = make_pipeline()
    server = PageServer(pipeline, Site("127.0.0.1:0", "/lab/evburst", ("lab.example",)))
    pipeline.start()
    try:
        base = server.url.removesuffix("/lab/evburst/")
        for path in ("/lab/evburst/", "/"):
            status, body, _ = get_from(base + path, Host="lab.example", Origin="https://lab.example")
            assert (status, b'data-root="/lab/evburst"' in body) == (200, True)
        assert get_from(base + "/lab/evburst/recording.dat", Host="lab.example")[0] == 404
        client = HTTPConnection(base.removeprefix("http://"), timeout=20)
        client.request("GET", "/lab/evburst?a=%20b", headers={"Host": "lab.example"})
        response = client.getresponse()  # without scheme and host: the proxy may encrypt, and have another port
        assert (response.status, response.headers["Location"]) == (307, "/lab/evburst/?a=%20b")
        client.close()
        assert get_from(base + "/", Host="other.example")[0] == 400
        for path in ("/lab/evburst/live", "/live"):
            with connect(base.replace("http", "ws") + path, proxy=None, origin="https://lab.example") as client:  # type: ignore[arg-type]
                assert "sensor_size" in json.loads(client.recv(timeout=20))
    finally:
        server.stop()
        pipeline.stop()


@pytest.mark.parametrize("root", ["/live", "/recording.dat", "/l", "/live/live", "/a%20b", "/lab/", "/"])
def test_any_root_path_works_behind_both_kinds_of_proxy(root: str) -> None:
    """Also one that is itself the path of something that is served."""
    pipeline = make_pipeline()
    server = PageServer(pipeline, Site("127.0.0.1:0", root))
    pipeline.start()
    try:
        folder = root.rstrip("/")
        base = server.url.removesuffix(f"{folder}/")
        for prefix in ("", folder):
            assert get_from(f"{base}{prefix}/")[0] == 200
            assert get_from(f"{base}{prefix}/recording.dat")[1] == b"nothing has been recorded yet\n"
            with connect(f"{base}{prefix}/live".replace("http", "ws", 1), proxy=None) as client:
                assert "sensor_size" in json.loads(client.recv(timeout=20))
        if folder != "/recording.dat":
            assert get_from(base + folder)[0] == 200  # redirected to the folder
    finally:
        server.stop()
        pipeline.stop()


def test_without_a_source_the_page_waits_for_its_camera() -> None:
    source = FrameSource(PushedFrames("the page's camera"), SIZE, SimulatorConfig(), 20_000)
    pipeline = make_pipeline(source)
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    try:
        wait_until(lambda: pipeline.capture.status == "running")
        with open_socket(server) as client:
            assert ask(client, {"set": {}})["status"] == "waiting for the page's camera"
            assert ask(client, {"do": "camera_on"})["status"] == "running"
            assert pipeline.source is source
    finally:
        server.stop()
        pipeline.stop()


# Who may connect


def scope(host: str = "127.0.0.1:8000", origin: str | None = None, query: str = "") -> dict[str, Any]:
    """What an ASGI server says of a connection."""
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    return {"type": "websocket", "path": "/live", "headers": headers, "query_string": query.encode()}


def visit(application: Any, visitor: dict[str, Any]) -> bool:
    """Whether a connection reaches the application behind a guard."""
    reached = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        pass

    asyncio.run(application(inside)(visitor, receive, send))
    return bool(reached)


@pytest.mark.parametrize(
    ("loopback", "token", "visitor", "admitted"),
    [
        (True, None, scope(), True),
        (True, None, scope("localhost:8000", "http://localhost:8000"), True),
        (True, None, scope("[::1]:8000"), True),
        (True, None, scope("evil.example:8000"), False),  # a name that was made to point to loopback
        (True, None, scope(origin="https://evil.example"), False),  # another site's script
        (True, None, scope(""), False),
        (True, None, scope("[::1"), False),
        (True, None, scope("evil.example@127.0.0.1"), False),
        (True, None, scope("127.0.0.1/evil.example"), False),
        (True, None, scope("127.0.0.1#.evil.example"), False),
        (True, None, scope("127.0.0.1?evil.example"), False),
        (True, None, scope("127.0.0.1:80:90"), False),
        (True, None, scope("127.0.0.1 evil"), False),
        (True, None, scope("lab.example", "https://lab.example"), True),  # --allow-host
        (True, None, scope("127.0.0.1:8000", "https://lab.example"), True),  # a proxy that writes its own Host
        (True, None, scope("127.0.0.1:8000", "https://lab.example.evil"), False),
        (True, None, scope("a.wide.example", "https://a.wide.example:8443"), True),
        (True, None, scope("wide.example.evil"), False),
        (False, "abc", scope("10.0.0.5:8000"), False),
        (False, "abc", scope("lab.example:8000", query="token=abd"), False),
        (False, "abc", scope("lab.example:8000", query="token=abc"), True),
        (False, "abc", scope("lab.example:8000", "http://evil.example", "token=abc"), False),
        (False, "abc", scope("lab.example:8000", query="token=%ff"), False),
    ],
)
def test_who_is_admitted(loopback: bool, token: str | None, visitor: dict[str, Any], admitted: bool) -> None:
    site = Site("127.0.0.1:8000", allow_hosts=("lab.example", "*.wide.example"))
    assert visit(lambda inside: guarded(inside, site, loopback, token), visitor) is admitted


def test_beyond_loopback_any_name_will_do_with_the_token() -> None:
    def guard(inside: Any) -> Any:
        return guarded(inside, Site("0.0.0.0:8000"), False, "abc")

    assert visit(guard, scope("10.0.0.5:8000", query="token=abc"))
    assert not visit(guard, scope("10.0.0.5:8000", "http://evil.example", "token=abc"))


@pytest.mark.parametrize("name", ["", "https://lab.example", "lab.example:80", "a*b", "*lab", "a b", "user@lab"])
def test_names_of_hosts_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="--allow-host"):
        Site("127.0.0.1:8000", allow_hosts=(name,))


@pytest.mark.parametrize("path", ["evburst", "/a?b", "/a b", '/"><script>'])
def test_root_paths_are_checked(path: str) -> None:
    with pytest.raises(ConfigError, match="--root-path"):
        Site("127.0.0.1:8000", path)


def test_beyond_loopback_there_is_a_warning_and_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, "_is_loopback", lambda host: False)  # private: tests open no port to the network
    pipeline = make_pipeline()
    with messages(logging.INFO):
        server = PageServer(pipeline, Site("127.0.0.1:0"))
    try:
        err = capsys.readouterr().err
        assert "reachable from other machines" in err
        token = server.url.partition("token=")[2]
        assert len(token) >= 20
        assert token in err
        assert get(server, "/")[0] == 403
        assert get(server, "/recording.dat?token=wrong")[0] == 403
        assert get(server, f"/?token={token}")[0] == 200
        with open_socket(server) as client:
            assert "sensor_size" in json.loads(client.recv(timeout=20))
        with pytest.raises(InvalidStatus):
            connect(server.url.partition("?")[0].replace("http", "ws") + "live", proxy=None)
    finally:
        server.stop()
        pipeline.stop()


@pytest.mark.parametrize(
    "address", ["8000", "127.0.0.1", "127.0.0.1:", "http://127.0.0.1:80", "127.0.0.1:99999", ":8000", "a b:1"]
)
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT|cannot listen"):
        PageServer(make_pipeline_of_nothing(), Site(address))


def make_pipeline_of_nothing() -> Any:
    """Not even asked: the address comes first."""
    return object()


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"cannot listen there \([^()]*in use\); try another port$"):
            PageServer(make_pipeline_of_nothing(), Site(address))
