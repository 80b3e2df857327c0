"""Find objects in an event recording: python detect.py --events FILE. See --help."""

import sys

from evburst.app.cli import detect_main

if __name__ == "__main__":
    sys.exit(detect_main())
