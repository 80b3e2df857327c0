"""Find objects in live events: python live.py --camera 0 --serve. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from app.cli import live_main

if __name__ == "__main__":
    sys.exit(live_main())
