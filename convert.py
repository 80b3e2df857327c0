"""Convert a trained network into a burst-spiking one: python convert.py --weights FILE --out FILE. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from app.cli import convert_main

if __name__ == "__main__":
    sys.exit(convert_main())
