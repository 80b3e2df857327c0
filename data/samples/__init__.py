"""The bundled recording and its labels, simulated from the synthetic street scene by make_street.py."""

from __future__ import annotations

from pathlib import Path

STREET = Path(__file__).resolve().with_name("street_td.dat")
STREET_LABELS = STREET.with_name("street_bbox.npy")
