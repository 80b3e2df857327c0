"""The documentation as a site, in Chromium on a desktop and on a phone: pictures load, no page is too wide, links lead
somewhere, search finds.

`python -m tests.test_docs_site FOLDER` writes a picture of every page at both widths there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("material", reason="the extra docs is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from tests.test_app_live_browser import CHROMIUM, DRIVER, FLAGS  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not here"),
]
WIDTHS = {"desktop": (1440, 1000), "phone": (390, 844)}
NAMES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


def build(folder: Path) -> Path:
    """The site, built without the network."""
    site = folder / "site"
    subprocess.run(["make", "links"], cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


def serve(site: Path) -> ThreadingHTTPServer:
    """A server of the site on the loopback address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def browser(width: int, height: int, profile: Path) -> Any:
    """Chromium with a screen of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics(width, height))
    return driver


def metrics(width: int, height: int) -> dict[str, Any]:
    """A screen of this size."""
    return {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}


def pictures(folder: Path) -> None:
    """Write a picture of every page, in its full length, at both widths."""
    server = serve(build(folder))
    for name, size in WIDTHS.items():
        driver = browser(*size, folder / f"profile-{name}")
        for page in NAMES:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics(*size))
            driver.get(f"http://127.0.0.1:{server.server_address[1]}/{page}.html")
            height = driver.execute_script("return document.documentElement.scrollHeight")
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics(size[0], height))
            driver.save_screenshot(str(folder / f"{page}-{name}.png"))
        driver.quit()
    server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = serve(site)
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=WIDTHS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = browser(*WIDTHS[request.param], tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def test_every_page_fits_the_screen_and_shows_its_pictures(driver: Any, address: str) -> None:
    for name in NAMES:
        driver.get(f"{address}/{name}.html")
        assert driver.title.endswith("evburst")
        width, inner = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= inner, f"{name}: {width} px on a screen of {inner}"
        driver.execute_script("for (const image of document.images) image.loading = 'eager'")
        WebDriverWait(driver, 20).until(lambda d: d.execute_script("return [...document.images].every(i => i.complete)"))
        broken = driver.execute_script("return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == [], name


def test_search_finds(driver: Any, address: str) -> None:
    driver.get(f"{address}/index.html")
    driver.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    field = driver.find_element(By.CSS_SELECTOR, "input[name=query]")
    field.send_keys("silence reference")
    found = "return [...document.querySelectorAll('a.md-search-result__link')].map(link => link.href)"  # redrawn on every key
    WebDriverWait(driver, 20).until(lambda d: any("method.html" in link for link in d.execute_script(found)))


def test_links_lead_somewhere(site: Path) -> None:
    """Those of pages and of what mkdocs makes around them, anchors included."""
    texts = {path: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    anchors = {path.name: set(re.findall(r'id="([^"]+)"', text)) for path, text in texts.items()}
    checked = 0
    for path, text in texts.items():
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            if re.match(r"[a-z]+:|//|#?$|data:", target) or path.name == "404.html":
                continue
            file, _, anchor = target.partition("#")
            found = path.parent / file if file else path
            assert found.exists(), f"{path.name}: {target}"
            if anchor and found.suffix == ".html":
                assert anchor in anchors[found.name], f"{path.name}: {target}"
            checked += 1
    assert checked > 500


if __name__ == "__main__":
    place = Path(sys.argv[1])
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    pictures(place)
