"""Burst-spiking vision for event cameras.

    from evburst import Detector, open_events
    for result in Detector("street").stream("recording.dat"):
        print(result.detections.boxes_xyxy, result.energy_pj)

In a wheel, `evburst.data`, `evburst.models`, `evburst.eval` and `evburst.app` are folders of this package. In a checkout they
are the folders beside it, so that `python detect.py` runs with nothing but the dependencies installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from evburst.app.inference import WindowResult
    from evburst.app.library import Classifier, Detector
    from evburst.data.boxes import Detections
    from evburst.data.classification import Classification
    from evburst.data.errors import EvburstError
    from evburst.data.events import SensorSize
    from evburst.data.readers import open_events

__all__ = [
    "Classification",
    "Classifier",
    "Detections",
    "Detector",
    "EvburstError",
    "SensorSize",
    "WindowResult",
    "open_events",
]

# pip refuses an older Python; in a checkout, the scripts run without pip.
if sys.version_info < (3, 11):  # noqa: UP036
    _FOUND = ".".join(map(str, sys.version_info[:3]))
    raise SystemExit(f"error: evburst needs Python 3.11 or newer, and this is Python {_FOUND}: {sys.executable}")

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "models" / "graph.py").is_file():
    __path__.append(str(_CHECKOUT))

_FROM = {
    "Classification": "evburst.data.classification",
    "Classifier": "evburst.app.library",
    "Detections": "evburst.data.boxes",
    "Detector": "evburst.app.library",
    "EvburstError": "evburst.data.errors",
    "SensorSize": "evburst.data.events",
    "WindowResult": "evburst.app.inference",
    "open_events": "evburst.data.readers",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import evburst` loads neither torch nor numba."""
    if name == "__version__":
        return import_module("evburst.app.provenance").installed_version()
    if name not in _FROM:
        raise AttributeError(f"module 'evburst' has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__, "__version__"])
