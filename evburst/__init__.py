"""Burst-spiking vision for event cameras.

In a wheel, `evburst.data`, `evburst.models`, `evburst.eval` and `evburst.app` are folders of this package. In a checkout they
are the folders beside it, so that `python detect.py` runs with nothing but the dependencies installed.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "models" / "graph.py").is_file():
    __path__.append(str(_CHECKOUT))
