"""Take the documentation's screenshot of the live page: python bench/live_picture.py --out docs/live.png

Serves the fake camera and opens the page in Chromium (extra dev; chromium and chromedriver must be on the path), then waits
until the plots are filled and there are boxes. Run it on an idle machine, because the picture shows the latency. --phone takes
a screenshot of the mobile layout.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.detect import DetectConfig
from evburst.app.live.frames import FakeCamera, FrameSource
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.server import PageServer, Site
from evburst.data.events import SensorSize
from evburst.data.simulation.sensor import SimulatorConfig

SIZE = SensorSize(304, 240)


def chromium(width: int, height: int, phone: bool) -> webdriver.Chrome:
    """A headless browser with a window of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    flags = ["headless=new", "no-sandbox", "disable-gpu", "no-first-run", "no-proxy-server", "disable-background-networking"]
    for flag in [*flags, "disable-component-update", "disable-sync", f"user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/live.png"), help="the picture (default: docs/live.png)")
    parser.add_argument("--phone", action="store_true", help="use the screen size of a phone")
    parser.add_argument("--timesteps", type=int, default=1, help="T (default: 1)")
    parser.add_argument("--seconds", type=float, default=70.0, help="time before the picture is taken (default: 70)")
    args = parser.parse_args()
    source = FrameSource(FakeCamera(SIZE), SIZE, SimulatorConfig(), 50_000)
    pipeline = LivePipeline(source, LiveConfig(DetectConfig(timesteps=args.timesteps)))
    server = PageServer(pipeline, Site("127.0.0.1:0"))
    pipeline.start()
    driver = chromium(*((390, 844) if args.phone else (1440, 900)), args.phone)
    try:
        driver.get(server.url)
        time.sleep(args.seconds)
        deadline = time.perf_counter() + 30
        while time.perf_counter() < deadline and "×" not in driver.find_element(By.ID, "boxes").text:
            time.sleep(0.02)
        driver.save_screenshot(str(args.out))
    finally:
        driver.quit()
        server.stop()
        pipeline.stop()


if __name__ == "__main__":
    main()
