"""The page in Chromium, whose camera is a film of the drawn street."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import ProxyHandler, build_opener

import cv2
import numpy as np
import pytest

from evburst.app.detect import DetectConfig
from evburst.app.live.frames import FakeCamera, FrameSource
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.sources import RecordingSource
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.data.writers import write_events
from tests.conftest import random_events
from tests.helpers.waiting import wait_until

pytest.importorskip("fastapi")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

from evburst.app.live import commands  # noqa: E402
from evburst.app.live import server as server_module  # noqa: E402
from evburst.app.live.server import PageServer, Site  # noqa: E402
from evburst.app.outputs.render import palette  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not here")]

SIZE = SensorSize(304, 240)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1440,1000",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def film(path: Path) -> Path:
    """Twenty pictures of the street as motion JPEG."""
    camera = FakeCamera(SIZE, 1000.0)
    camera.open()
    # Private: the camera itself hands out its pictures at the pace of the clock.
    frames = [camera._scene.render(40_000 * k) for k in range(20)]
    pictures = [np.exp(frame).clip(0, 255).astype(np.uint8) for frame in frames]
    path.write_bytes(b"".join(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures))
    return path


@pytest.fixture(scope="module")
def pipeline() -> Iterator[LivePipeline]:
    """The fake camera and the bundled weights, at one timestep."""
    source = FrameSource(FakeCamera(SIZE), SIZE, SimulatorConfig(), 50_000, upsample=False)
    pipeline = LivePipeline(source, LiveConfig(DetectConfig(timesteps=1)), lambda line: None)
    pipeline.start()
    yield pipeline
    pipeline.stop()


@pytest.fixture(scope="module")
def server(pipeline: LivePipeline) -> Iterator[PageServer]:
    """The page of the pipeline."""
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(server: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium on the page; what it downloads goes to its attribute `downloads`."""
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={folder / 'user'}", f"--use-file-for-fake-video-capture={film(folder / 'a.mjpeg')}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = folder / "downloads"
    driver.get(server.url)
    yield driver
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    driver.quit()
    assert errors == []


def text(browser: Any, name: str) -> str:
    """What an element says."""
    return str(browser.find_element(By.ID, name).get_property("textContent")).strip()


def reload(browser: Any) -> None:
    """Load the page anew and wait until it acts on presses."""
    browser.refresh()
    wait_until(lambda: browser.execute_script("return shown"))


def test_it_says_that_events_are_simulated_and_shows_boxes_and_figures(browser: Any) -> None:
    wait_until(lambda: "car" in text(browser, "boxes"))
    assert browser.title == "evburst live"
    assert text(browser, "kind") == "Drawn and simulated"
    assert browser.find_element(By.ID, "simulated").is_displayed()
    wait_until(lambda: text(browser, "status") == "running")
    assert text(browser, "network") == "SNN, T = 1, weights street"
    assert "% of ANN" in text(browser, "share")
    names = ("rate", "latency", "spikes", "energy", "beyond", "events-per-window")
    assert "–" not in [text(browser, name) for name in names]
    beyond, energy = (float(text(browser, name)) for name in ("beyond", "energy"))  # perhaps of two windows
    assert 0 < beyond < 1.5 * energy


def test_the_picture_moves(browser: Any) -> None:
    canvas = browser.find_element(By.ID, "events")
    first = canvas.screenshot_as_png
    wait_until(lambda: canvas.screenshot_as_png != first)

    def share_of_white() -> float:
        picture = cv2.imdecode(np.frombuffer(canvas.screenshot_as_png, np.uint8), cv2.IMREAD_GRAYSCALE)
        return float((picture > 250).mean())

    wait_until(lambda: share_of_white() > 0.002)  # ON events are white; a window may have few


def test_sliders_act_by_keyboard(browser: Any, pipeline: LivePipeline) -> None:
    source = pipeline.source
    assert isinstance(source, FrameSource)
    for name, key, acted in (
        ("score", Keys.ARROW_RIGHT, lambda: pipeline.wanted.post.score == pytest.approx(0.35)),
        ("timesteps", Keys.ARROW_RIGHT, lambda: pipeline.network.timesteps == 2),
        ("contrast", Keys.ARROW_LEFT, lambda: source.contrast == pytest.approx(0.24)),
    ):
        browser.find_element(By.ID, name).send_keys(key)
        wait_until(acted)
    assert [text(browser, f"{name}-value") for name in ("score", "timesteps", "contrast")] == ["0.35", "2", "0.24"]
    wait_until(lambda: "T = 2" in text(browser, "network"))
    browser.find_element(By.ID, "timesteps").send_keys(Keys.ARROW_LEFT)
    wait_until(lambda: pipeline.network.timesteps == 1)


def test_sliders_state_values_between_their_steps_and_beyond_their_ends(browser: Any) -> None:
    """As given on the command line: the page shows what is in force, and its sliders reach it."""
    script = """
        receiveState({ score: 0.33, timesteps: 12, contrast: 0.725 });
        const shown = ["score", "timesteps", "contrast"].map((id) => document.getElementById(`${id}-value`).textContent);
        receiveState({ score: 0.995, timesteps: 1, contrast: 0.03 });
        for (const id of ["score", "contrast"]) shown.push(document.getElementById(`${id}-value`).textContent);
        const { max } = document.getElementById("timesteps"), { min } = document.getElementById("contrast");
        return [shown, Number(max), Number(min) <= 0.03];"""
    wait_until(lambda: browser.execute_script("return about"))
    assert browser.execute_script(script) == [["0.33", "12", "0.725", "0.995", "0.03"], 12, True]
    reload(browser)


def test_space_pauses_and_resumes(browser: Any, server: PageServer) -> None:
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(" ")
    wait_until(lambda: server.broadcaster.paused and text(browser, "curtain") == text(browser, "status").title() == "Paused")
    body.send_keys(" ")
    wait_until(lambda: not server.broadcaster.paused and not browser.find_element(By.ID, "curtain").is_displayed())


def test_the_pause_button_pauses_and_resumes(browser: Any, server: PageServer) -> None:
    button = browser.find_element(By.ID, "pause")
    button.click()
    wait_until(lambda: server.broadcaster.paused and text(browser, "pause").startswith("Resume"))
    button.click()
    wait_until(lambda: not server.broadcaster.paused and text(browser, "pause").startswith("Pause"))


def test_a_pause_survives_a_lost_connection(browser: Any, server: PageServer) -> None:
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: server.broadcaster.paused)
    browser.execute_script("socket.close()")
    wait_until(lambda: "does not answer" in text(browser, "curtain"))
    wait_until(lambda: server.broadcaster.paused and text(browser, "curtain") == "Paused")
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: text(browser, "status") == "running")


def make_server(size: SensorSize, address: str = "127.0.0.1:0") -> tuple[PageServer, LivePipeline]:
    """A running page with the fake camera and a sensor of any size."""
    source = FrameSource(FakeCamera(size), size, SimulatorConfig(), 50_000, upsample=False)
    pipeline = LivePipeline(source, LiveConfig(DetectConfig(ann=True)), lambda line: None)
    server = PageServer(pipeline, Site(address))
    pipeline.start()
    return server, pipeline


def stop(server: PageServer, pipeline: LivePipeline) -> None:
    """As a run ends."""
    server.stop()
    pipeline.stop()


def test_a_paused_page_begins_anew_if_the_server_was_restarted_with_another_sensor(browser: Any) -> None:
    address, (server, pipeline) = browser.current_url, make_server(SensorSize(304, 240))
    browser.get(server.url)
    wait_until(lambda: text(browser, "status") == "running" and text(browser, "windows") > "0")
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: server.broadcaster.paused)
    stop(server, pipeline)
    wait_until(lambda: "does not answer" in text(browser, "curtain"))
    browser.execute_script("receive = receiveResult; receiveResult = () => {}")
    server, pipeline = make_server(SensorSize(160, 120), server.url.removeprefix("http://").rstrip("/"))
    wait_until(lambda: text(browser, "status") == "running" and text(browser, "pause").startswith("Pause"))
    state = "return [shown, history.length, sensorCanvas.width, pausedAt, clock.textContent, boxes.textContent]"
    assert browser.execute_script(state) == [None, 0, 160, 0, "–", "no boxes"]
    browser.execute_script("receiveResult = receive")
    wait_until(lambda: browser.execute_script("return shown && shown.packed.length === 160 * 120 / 4"))
    assert not server.broadcaster.paused
    browser.get(address)
    stop(server, pipeline)
    browser.get_log("browser")  # attempts to connect while there was no server


def test_a_page_that_is_not_drawn_keeps_a_minute(browser: Any) -> None:
    """As in a background tab: results are received, and no picture is asked for."""
    wait_until(lambda: browser.execute_script("return shown"))
    script = """
        const text = new TextEncoder().encode(JSON.stringify(shown.header));
        const bytes = new Uint8Array(4 + text.length + shown.packed.length);
        new DataView(bytes.buffer).setUint32(0, text.length, true);
        bytes.set(text, 4);
        const at = performance.now(), before = history.length;
        history.unshift(...Array.from({ length: 5000 }, (_, k) => ({ ...shown.header, at: at - 90000 + k })));
        receiveResult(bytes.buffer);
        return history.length - before;"""
    assert browser.execute_script(script) <= 1


def test_a_page_too_many_says_so_until_there_is_a_place(
    browser: Any, server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_CLIENTS", 1)  # private: a limit that nobody sets
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(server.url)
    wait_until(lambda: text(browser, "status") == "not connected")
    assert text(browser, "curtain") == "1 pages are open already. This page continues when one of them is closed."
    assert not browser.find_element(By.ID, "message").is_displayed()
    monkeypatch.undo()
    wait_until(lambda: text(browser, "status") == "running" and not browser.find_element(By.ID, "curtain").is_displayed())
    browser.close()
    browser.switch_to.window(first)


def test_a_page_with_an_old_token_says_that_its_address_is_out_of_date(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_is_loopback", lambda host: False)  # private: tests open no port to the network
    address, (server, pipeline) = browser.current_url, make_server(SIZE)
    browser.get(server.url)
    wait_until(lambda: text(browser, "status") == "running")
    stop(server, pipeline)
    wait_until(lambda: "does not answer" in text(browser, "curtain"))
    server, pipeline = make_server(SIZE, server.url.removeprefix("http://").partition("/")[0])
    wait_until(lambda: text(browser, "curtain").startswith("The address of this page is out of date"))
    assert text(browser, "status") == "not connected"
    browser.get(address)
    stop(server, pipeline)
    browser.get_log("browser")  # attempts to connect


def test_a_page_whose_websocket_is_refused_says_so(browser: Any, server: PageServer) -> None:
    """As by a reverse proxy that passes none on: the page comes from a server that answers, and must not say the opposite."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_socket = "Upgrade" in self.headers
            self.send_response(404 if is_socket else 200)
            self.end_headers()
            if self.command == "GET" and not is_socket:
                self.wfile.write(build_opener(ProxyHandler({})).open(server.url).read())

        do_HEAD = do_GET  # noqa: N815 http.server's name

        def log_message(self, *args: object) -> None:
            pass

    address, proxy = browser.current_url, ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = Thread(target=proxy.serve_forever)
    thread.start()
    browser.get(f"http://127.0.0.1:{proxy.server_port}/")
    wait_until(lambda: text(browser, "curtain").startswith("The server answers, but the page's WebSocket is refused"))
    assert text(browser, "status") == "not connected"
    proxy.shutdown()
    proxy.server_close()
    thread.join()
    wait_until(lambda: "does not answer" in text(browser, "curtain"))
    browser.get(address)
    browser.get_log("browser")  # attempts to connect


def test_a_recording_that_stopped_by_itself_is_reported(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_RECORDING_BYTES", 1 << 10)
    browser.find_element(By.ID, "record").click()
    wait_until(lambda: "The recording has stopped: it reached its limit" in text(browser, "message"))
    assert (text(browser, "record").split()[0], browser.find_element(By.ID, "download").is_displayed()) == ("Record", True)
    monkeypatch.undo()
    for _ in range(2):
        browser.find_element(By.ID, "record").click()
    wait_until(lambda: not browser.find_element(By.ID, "message").is_displayed())


PICTURE = "return document.getElementById('events').toDataURL()"


def test_two_viewers_pause_and_switch_the_picture_for_themselves(browser: Any, server: PageServer) -> None:
    """Their settings are shared."""
    first = browser.current_window_handle
    browser.find_element(By.ID, "picture").click()
    wait_until(browser.find_element(By.ID, "inset").is_displayed)
    browser.find_element(By.ID, "pause").click()
    frozen, clock = browser.execute_script(PICTURE), text(browser, "clock")
    browser.switch_to.new_window("window")
    browser.get(server.url)
    wait_until(lambda: text(browser, "status") == "running")
    assert (text(browser, "pause").split()[0], server.broadcaster.paused) == ("Pause", False)
    assert not browser.find_element(By.ID, "inset").is_displayed()
    for _ in range(2):
        moving, windows = browser.execute_script(PICTURE), text(browser, "windows")
        wait_until(lambda: browser.execute_script(PICTURE) != moving and text(browser, "windows") != windows)  # noqa: B023
    browser.find_element(By.ID, "score").send_keys(Keys.ARROW_RIGHT)
    score = text(browser, "score-value")
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: server.broadcaster.paused)
    browser.close()
    browser.switch_to.window(first)
    wait_until(lambda: text(browser, "score-value") == score)
    assert browser.execute_script(PICTURE) == frozen
    assert (text(browser, "clock"), text(browser, "status"), text(browser, "windows") > "0") == (clock, "paused", True)
    assert browser.find_element(By.ID, "inset").is_displayed()
    browser.find_element(By.ID, "pause").click()
    wait_until(lambda: browser.execute_script(PICTURE) != frozen)
    browser.find_element(By.ID, "picture").click()
    browser.find_element(By.ID, "score").send_keys(Keys.ARROW_LEFT)


def test_a_snapshot_is_the_picture_with_its_boxes(browser: Any) -> None:
    wait_until(lambda: "car" in text(browser, "boxes"))
    browser.find_element(By.ID, "snapshot").click()
    wait_until(lambda: list(browser.downloads.glob("evburst_*.png")))
    picture = cv2.imread(str(next(browser.downloads.glob("evburst_*.png"))))
    canvas = browser.find_element(By.ID, "events")
    assert list(picture.shape[:2]) == [int(canvas.get_attribute(side)) for side in ("height", "width")]
    colour = [int(palette()["classes"][0][k : k + 2], 16) for k in (5, 3, 1)]
    assert (picture == colour).all(2).sum() > 100  # a car's box


def test_where_no_snapshot_is_possible_a_message_says_so(browser: Any) -> None:
    wait_until(lambda: browser.execute_script("return shown"))
    browser.execute_script("events.style.maxHeight = '0'; dirty = true")
    wait_until(lambda: browser.execute_script("return events.height") == 0)
    browser.find_element(By.ID, "snapshot").click()
    wait_until(lambda: text(browser, "message") == "No snapshot: the window is too small for the picture.")
    browser.execute_script("shown = null; snapshot()")
    assert text(browser, "message") == "There is no picture of events yet, so no snapshot."
    reload(browser)


def test_keys_act_as_their_buttons(browser: Any, pipeline: LivePipeline) -> None:
    body, own = browser.find_element(By.TAG_NAME, "body"), pipeline.source
    for key, acted in (
        ("r", lambda: browser.find_element(By.ID, "record").get_attribute("aria-pressed") == "true"),
        ("r", lambda: browser.find_element(By.ID, "record").get_attribute("aria-pressed") == "false"),
        ("p", browser.find_element(By.ID, "inset").is_displayed),
        ("p", lambda: not browser.find_element(By.ID, "inset").is_displayed()),
        ("c", lambda: pipeline.source is not own),
        ("c", lambda: pipeline.source is own),
    ):
        body.send_keys(key)
        wait_until(acted)
    browser.execute_script("HTMLCanvasElement.prototype.toBlob = function () { snapped = this.id; }; snapped = null")
    body.send_keys("s")
    assert browser.execute_script("return snapped") == "events"
    browser.execute_script("sent = []; socket.send = (text) => sent.push(text)")
    browser.find_element(By.ID, "weights-choice").send_keys("r")  # keys in a list of choices belong to the list
    assert "record" not in str(browser.execute_script("return sent"))
    browser.refresh()


def test_a_recording_downloads_and_is_read(browser: Any) -> None:
    button = browser.find_element(By.ID, "record")
    button.click()
    wait_until(lambda: "Stop recording" in text(browser, "record") and "(0 " not in text(browser, "record"))
    button.click()
    download = browser.find_element(By.ID, "download")
    wait_until(download.is_displayed)
    download.click()
    wait_until(lambda: list(browser.downloads.glob("*.dat")))
    stream = open_events(next(browser.downloads.glob("*.dat")))
    assert stream.sensor_size == SIZE
    assert sum(len(packet) for packet in stream.packets()) > 100


def test_the_browsers_camera_becomes_the_source(browser: Any, pipeline: LivePipeline) -> None:
    own = pipeline.source
    button = browser.find_element(By.ID, "camera")
    button.click()
    wait_until(lambda: text(browser, "source") == "the page's camera")
    before = pipeline.figures.windows
    wait_until(lambda: pipeline.figures.windows > before + 3 and text(browser, "rate") not in ("0", "–"))
    assert text(browser, "kind") == "Simulated events"
    button.click()
    wait_until(lambda: pipeline.source is own)


TRACKS = """
    window.tracks = [];
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wish) => {
      const stream = await ask(wish);
      tracks.push(...stream.getTracks());
      return stream;
    };"""
"""Keeps the tracks of the cameras that the page opens, until it is loaded anew."""


def test_two_presses_at_once_open_one_camera_that_can_be_stopped(browser: Any, pipeline: LivePipeline) -> None:
    own = pipeline.source
    browser.execute_script(TRACKS + "for (let k = 0; k < 2; k++) document.getElementById('camera').click();")
    wait_until(lambda: pipeline.source is not own and text(browser, "camera").startswith("Stop"))
    browser.find_element(By.ID, "camera").click()
    wait_until(lambda: pipeline.source is own)
    assert browser.execute_script("return tracks.map((track) => track.readyState)") == ["ended"]
    reload(browser)


def test_a_camera_can_be_used_again_at_once(browser: Any, pipeline: LivePipeline) -> None:
    """The server may still count it as used."""
    own, button = pipeline.source, browser.find_element(By.ID, "camera")
    button.click()
    wait_until(lambda: browser.execute_script("return state.own_camera"))
    used = pipeline.source
    browser.execute_script("for (let k = 0; k < 2; k++) document.getElementById('camera').click();")
    wait_until(lambda: pipeline.source not in (own, used) and text(browser, "camera").startswith("Stop"))
    assert not browser.find_element(By.ID, "message").is_displayed()
    button.click()
    wait_until(lambda: pipeline.source is own)


def test_the_message_of_a_refused_camera_ends_when_it_works(browser: Any, pipeline: LivePipeline) -> None:
    own, button = pipeline.source, browser.find_element(By.ID, "camera")
    refuse = """
        const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async () => { devices.getUserMedia = ask; throw new DOMException("Refused", arguments[0]); };"""
    for name, advice in (
        ("NotReadableError", ""),
        ("NotFoundError", " Connect one and try again."),
        ("NotAllowedError", " Allow it next to the address bar and try again."),
    ):
        browser.execute_script(refuse, name)
        button.click()
        wait_until(lambda words=f"The camera cannot be used: Refused.{advice}": text(browser, "message") == words)
    button.click()
    wait_until(lambda: pipeline.source is not own and not browser.find_element(By.ID, "message").is_displayed())
    button.click()
    wait_until(lambda: pipeline.source is own)
    # A recording that begins ends the message of the one before alone.
    browser.execute_script("showMessage('of something else'); stopped = 'full'; showStopped('')")
    assert browser.find_element(By.ID, "message").is_displayed()


def test_a_camera_that_is_unplugged_is_no_longer_the_source(browser: Any, pipeline: LivePipeline) -> None:
    own, button = pipeline.source, browser.find_element(By.ID, "camera")
    browser.execute_script(TRACKS)
    button.click()
    wait_until(lambda: pipeline.source is not own and text(browser, "camera").startswith("Stop"))
    browser.execute_script("tracks[0].stop(); tracks[0].dispatchEvent(new Event('ended'))")
    assert text(browser, "message").startswith("This device's camera has stopped: it was unplugged")
    assert text(browser, "camera").startswith("Use")
    wait_until(lambda: pipeline.source is own)
    button.click()
    wait_until(lambda: pipeline.source is not own and not browser.find_element(By.ID, "message").is_displayed())
    button.click()
    wait_until(lambda: pipeline.source is own)
    reload(browser)


def test_a_camera_that_does_not_play_is_stopped(browser: Any, pipeline: LivePipeline) -> None:
    """By the button while it has no picture, and by itself if it fails."""
    own = pipeline.source
    browser.execute_script(TRACKS + "HTMLMediaElement.prototype.play = () => new Promise(() => {});")
    button = browser.find_element(By.ID, "camera")
    button.click()
    wait_until(lambda: text(browser, "camera").startswith("Stop"))
    button.click()
    wait_until(lambda: text(browser, "camera").startswith("Use"))
    browser.execute_script("HTMLMediaElement.prototype.play = () => Promise.reject(new Error('no picture'))")
    button.click()
    wait_until(lambda: text(browser, "message").startswith("The camera cannot be used: no picture."))
    assert browser.execute_script("return tracks.map((track) => track.readyState)") == ["ended", "ended"]
    wait_until(lambda: pipeline.source is own)
    reload(browser)


def test_a_recording_is_sought_with_slider_and_arrows(browser: Any, tmp_path: Path) -> None:
    """On a page of its own; the page of the camera has no slider."""
    assert not browser.find_element(By.ID, "seek").is_displayed()
    write_events(tmp_path / "a.dat", random_events(5000, SIZE, 90_000_000), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 50_000, loop=True)
    source.open()
    source.close()
    pipeline = LivePipeline(source, LiveConfig(DetectConfig(timesteps=1)), lambda line: None)
    server, address = PageServer(pipeline, Site("127.0.0.1:0")), browser.current_url
    pipeline.start()
    browser.get(server.url)
    slider = browser.find_element(By.ID, "position")
    wait_until(slider.is_displayed)
    wait_until(lambda: text(browser, "position-value").endswith(" / 1:30.0"))
    ActionChains(browser).move_to_element(slider).click().perform()  # its middle
    wait_until(lambda: 44 < source.position_s < 50 and text(browser, "position-value").startswith("0:4"))
    for key, low_s, high_s in ((Keys.ARROW_RIGHT, 49, 55), (Keys.ARROW_LEFT, 44, 54)):
        before_s = source.position_s
        slider.send_keys(key)
        wait_until(lambda before_s=before_s: abs(source.position_s - before_s) > 3)  # type: ignore[misc]
        assert low_s < source.position_s < high_s
    browser.find_element(By.ID, "score").send_keys(Keys.ARROW_RIGHT)  # its own slider
    wait_until(lambda: pipeline.wanted.post.score == pytest.approx(0.35))
    assert source.position_s < 56
    assert browser.execute_script("return [9.96, 65.25, 3725.5].map(playingTime)") == ["0:09.9", "1:05.2", "1:02:05.5"]
    browser.get(address)
    server.stop()
    pipeline.stop()
    wait_until(lambda: text(browser, "status") == "running")


def test_colours_are_those_of_pictures(browser: Any) -> None:
    """Legend and boxes: taken from the same definition as the video's, red and blue in their places."""
    shown = browser.execute_script(
        "return [colourOf(0), colourOf(1), [...pixelColours], getComputedStyle(document.getElementById('off')).backgroundColor]"
    )
    colours = palette()
    assert shown[:2] == colours["classes"][:2]
    red, green, blue = (int(colours["off"][k : k + 2], 16) for k in (1, 3, 5))
    assert shown[2][1] == 0xFF000000 | blue << 16 | green << 8 | red
    assert shown[3] == f"rgb({red}, {green}, {blue})"


def test_the_source_picture_is_an_inset_that_can_be_switched(browser: Any) -> None:
    inset, button = (browser.find_element(By.ID, name) for name in ("inset", "picture"))
    assert not inset.is_displayed()
    button.click()
    wait_until(lambda: inset.is_displayed() and browser.execute_script("return document.getElementById('inset').width") == 304)
    button.click()
    wait_until(lambda: not inset.is_displayed())


def test_a_source_picture_asked_for_in_a_pause_comes_with_the_next_window(browser: Any, server: PageServer) -> None:
    """And one of before the pause is not shown for it."""
    inset, picture, pause = (browser.find_element(By.ID, name) for name in ("inset", "picture", "pause"))
    picture.click()
    wait_until(inset.is_displayed)
    picture.click()
    wait_until(lambda: not browser.execute_script("return pictured"))
    pause.click()
    wait_until(lambda: server.broadcaster.paused)
    picture.click()
    assert not inset.is_displayed()
    assert text(browser, "message") == "The source's picture is shown once this page is resumed."
    pause.click()
    wait_until(inset.is_displayed)
    picture.click()
    wait_until(lambda: not inset.is_displayed())


def test_network_and_weights_are_switched_while_windows_go_on(browser: Any, pipeline: LivePipeline) -> None:
    def choose(name: str, value: str) -> None:
        Select(browser.find_element(By.ID, name)).select_by_value(value)

    choose("network-choice", "ann")
    wait_until(lambda: text(browser, "network") == "ANN, weights street")
    wait_until(lambda: text(browser, "spikes") == "none" and text(browser, "share") == "")
    assert text(browser, "timesteps-value") == "the ANN has none"
    # What a change of other settings sends does not undo a choice; in one script, before a state of the time before it arrives.
    script = "const menu = $('weights-choice'); menu.value = 'caltech6'; applyAbout(about); return menu.value"
    assert browser.execute_script(script) == "caltech6"
    browser.execute_script("document.getElementById('weights-choice').value = 'street'")
    choose("weights-choice", "caltech6")
    wait_until(lambda: text(browser, "network") == "ANN, weights caltech6")
    choose("weights-choice", "street")
    choose("network-choice", "snn")
    wait_until(lambda: text(browser, "network") == "SNN, T = 1, weights street")
    assert not browser.find_element(By.ID, "preparing").is_displayed()


def test_energy_above_the_anns_is_red(browser: Any) -> None:
    header = {"energy_uj": 300, "beyond_silence_uj": 9, "ann_uj": 200, "spikes": 5, "idle": False, "boxes": [], "events": 1,
              "traffic": None, "events_per_s": 1, "latency_ms": 1, "t_us": 0}  # fmt: skip
    over = """figures(arguments[0]);
        return ["energy", "share"].map((id) => document.getElementById(id).classList.contains("over"));"""
    assert browser.execute_script(over, header) == [True, True]
    assert browser.execute_script(over, {**header, "energy_uj": 100}) == [False, False]


def test_memory_traffic_is_in_the_footnote(browser: Any) -> None:
    wait_until(lambda: "With memory traffic" in text(browser, "traffic"))
    assert re.search(r"the SNN takes [\d,]+ µJ, \d+ % of the ANN's\.$", text(browser, "traffic"))


def test_explanations_stay_on_the_page_of_a_phone(browser: Any) -> None:
    """Wherever the figure stands in its line: an explanation is as far left as its figure, or spans all of them."""
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    sides = """const figure = arguments[0], style = getComputedStyle(figure, "::after");
        const around = getComputedStyle(figure).position === "static" ? figure.offsetParent : figure;
        const left = around.getBoundingClientRect().left + parseFloat(style.left);
        return [left, left + parseFloat(style.width)];"""
    try:
        for figure in browser.find_elements(By.CSS_SELECTOR, ".totals > span, .card[data-help], #kind"):
            browser.execute_script("arguments[0].focus()", figure)
            ActionChains(browser).send_keys(Keys.SHIFT).perform()  # a focus by script is shown after a key
            left, right = browser.execute_script(sides, figure)
            assert 0 <= left < right <= 360, figure.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_energies_are_plotted_on_one_scale_and_events_behind_them(browser: Any) -> None:
    """The canvas's columns at the places of three points: a line for every spike, one for differences, an area for events."""
    script = """
        const canvas = document.createElement("canvas"), at = performance.now();
        Object.defineProperties(canvas, { clientWidth: { value: 601 }, clientHeight: { value: 118 } });
        pausedAt = at;
        history.splice(0, Infinity, ...[[21, 0, 0, 0], [20, 24, 12, 800], [19, 24, 6, 1000]].map(
          ([age, energy_uj, beyond_silence_uj, events]) => ({ at: at - 1000 * age, energy_uj, beyond_silence_uj, events })));
        plot(canvas, PLOTS.energy);
        const x = Math.round((400 * canvas.width) / 601), column = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height);
        pausedAt = 0;
        return [canvas.height, [...column.data]];"""
    height, data = browser.execute_script(script)
    column = np.array(data).reshape(height, 4)

    def share(colour: tuple[int, int, int]) -> float:
        rows = np.nonzero((np.abs(column[:, :3] - colour).max(1) < 40) & (column[:, 3] > 100))[0]
        return float((height * 116 / 118 - rows[0]) / (height * 100 / 118))

    assert share((0x58, 0xC4, 0xF6)) == pytest.approx(1.0, abs=0.03)
    assert share((0x5F, 0xDC, 0x78)) == pytest.approx(0.5, abs=0.03)
    assert share((0x33, 0x41, 0x5A)) == pytest.approx(0.8, abs=0.03)
    browser.refresh()


def test_windows_of_slow_motion_are_plotted_and_have_a_pace(browser: Any) -> None:
    """Windows five seconds apart are one line, a pause is a gap in it, and a single window is a dot."""
    script = """
        const at = performance.now(), lengths = [];
        pausedAt = at;
        const receive = (ages) => history.splice(0, Infinity, ...ages.map(
          (age) => ({ at: at - 1000 * age, windows: 100 - age / 5, energy_uj: 9, beyond_silence_uj: 9, events: 9 })));
        const count = () => lengths.push(received("events").map((part) => part.length));
        receive([52, 12, 7, 2]);
        count();
        const pace = windowRate();
        receive([20, 10, 9.9, 9.8, 9.7]);
        count();
        lengths.push(windowRate());
        receive([30]);
        const canvas = document.createElement("canvas");
        Object.defineProperties(canvas, { clientWidth: { value: 600 }, clientHeight: { value: 118 } });
        plot(canvas, PLOTS.energy);
        const column = canvas.getContext("2d").getImageData(canvas.width / 2, 0, 1, canvas.height / 2).data;
        pausedAt = 0;
        return [pace, lengths, column.some((value, k) => k % 4 === 1 && value > 150)];"""
    assert browser.execute_script(script) == ["0.20", [[2, 3], [2, 4], "–"], True]
    reload(browser)


def test_every_figure_explains_itself(browser: Any) -> None:
    figures = browser.find_elements(By.CSS_SELECTOR, ".card:not(.settings), .totals > span, #kind")
    assert len(figures) == 10
    assert all(len(figure.get_attribute("data-help")) > 20 for figure in figures)
    # Its words come with the first window after a page was loaded: before, there is nothing under the pointer.
    wait_until(lambda: text(browser, "network").startswith("SNN"))
    shown = "return getComputedStyle(arguments[0], '::after').content"

    def explained() -> bool:
        ActionChains(browser).move_to_element(figures[-1]).perform()
        return "its timesteps T, and its weights" in browser.execute_script(shown, figures[-1])

    wait_until(explained)


def test_two_pages_do_not_take_each_others_camera(browser: Any, pipeline: LivePipeline) -> None:
    own, first = pipeline.source, browser.current_window_handle
    browser.find_element(By.ID, "camera").click()
    wait_until(lambda: text(browser, "camera").startswith("Stop"))
    address = browser.current_url
    browser.switch_to.new_window("tab")
    browser.get(address)
    wait_until(lambda: text(browser, "source") == "the page's camera")
    # The second viewer sees what the first one's camera sees: its events, its boxes and, if switched on, its picture.
    assert text(browser, "kind") == "Simulated events"
    before = int(text(browser, "windows").replace(",", ""))
    wait_until(lambda: int(text(browser, "windows").replace(",", "")) > before + 3)
    browser.find_element(By.ID, "picture").click()
    wait_until(lambda: browser.execute_script("return document.getElementById('inset').width") == 304)
    browser.find_element(By.ID, "camera").click()
    wait_until(lambda: text(browser, "message") == "another page's camera is in use")
    assert text(browser, "camera").startswith("Use")
    # As if the other page had taken it a moment ago: the server's refusal ends this page's camera, and its words stay.
    browser.execute_script("state.page_camera = false; startCamera()")
    wait_until(lambda: browser.execute_script("return camera === null") and text(browser, "camera").startswith("Use"))
    assert text(browser, "message") == "another page's camera is in use"
    assert pipeline.source is not own
    browser.close()
    browser.switch_to.window(first)
    assert pipeline.source is not own
    assert text(browser, "camera").startswith("Stop")
    browser.find_element(By.ID, "camera").click()
    wait_until(lambda: pipeline.source is own)


def test_fullscreen_shows_the_picture_with_messages_and_recording(browser: Any) -> None:
    """Controls that are no help there are hidden; the text names the key in place of the button."""
    browser.find_element(By.ID, "fullscreen").click()
    wait_until(lambda: browser.execute_script("return document.fullscreenElement?.id") == "view")
    keys = browser.find_element(By.TAG_NAME, "body")
    keys.send_keys("r")
    wait_until(lambda: browser.find_element(By.ID, "record").is_displayed())
    script = """showMessage("words"); receiveState({ warning: "more words", status: "waiting for the page's camera" });
        const rectangle = (id) => Object.values(document.getElementById(id).getBoundingClientRect().toJSON()).slice(0, 4);
        return [rectangle("events"), rectangle("message"), rectangle("warning"), curtain.textContent];"""
    (_, _, *screen), *messages, curtain = browser.execute_script(script)
    assert screen == browser.execute_script("return [innerWidth, innerHeight]")
    assert all(width > 0 and left >= 0 and top + height <= screen[1] for left, top, width, height in messages)
    assert curtain.startswith("Press C to")
    visible = "[...view.querySelectorAll('button, a')].filter((e) => e.checkVisibility()).map((e) => e.id)"
    assert set(browser.execute_script(f"return {visible}")) - {"download"} == {"record"}
    keys.send_keys("r")
    wait_until(lambda: not browser.find_element(By.ID, "record").is_displayed())
    assert browser.find_element(By.ID, "download").is_displayed()
    keys.send_keys("f")
    wait_until(lambda: browser.execute_script("return document.fullscreenElement") is None)


def test_a_server_that_is_gone_covers_the_picture(browser: Any) -> None:
    """The socket is closed for good; the page says so, and is right again once it is loaded from a server that answers."""
    browser.execute_script("WebSocket = class { send() {} }; socket.close()")
    wait_until(lambda: "does not answer" in text(browser, "curtain"))
    assert browser.find_element(By.ID, "curtain").is_displayed()
    browser.refresh()
    wait_until(lambda: text(browser, "status") == "running" and not browser.find_element(By.ID, "curtain").is_displayed())


def test_a_page_that_waits_points_at_the_button(browser: Any) -> None:
    waiting = """receiveState({ status: "waiting for the page's camera" });
        return ["camera", "curtain"].map((id) => document.getElementById(id)).map((e) => [e.className, e.textContent]);"""
    (button, _), (_, words) = browser.execute_script(waiting)
    assert button == "suggested"
    assert words.startswith("Press “Use this device's camera” below")
    wait_until(lambda: browser.find_element(By.ID, "camera").get_attribute("class") == "")


def test_a_phone_shows_everything_without_scrolling_sideways(browser: Any) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    heights = browser.execute_script("return [...document.querySelectorAll('button')].map(b => b.clientHeight)")
    assert min(heights) >= 42  # px a finger hits
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(("width", "height"), [(915, 412), (915, 340), (915, 300), (800, 360), (1000, 500)])
def test_the_picture_is_most_of_a_low_windows_height_and_fits_into_it(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert 0.7 * height < browser.execute_script("return events.clientHeight") < height
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
