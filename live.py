"""Find objects in live events: python live.py --camera 0 --serve. See --help."""

import sys

from evburst.app.live.cli import live_main

if __name__ == "__main__":
    sys.exit(live_main())
