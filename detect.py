"""Find objects in an event recording: python detect.py --events FILE. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from app.cli import detect_main

if __name__ == "__main__":
    sys.exit(detect_main())
