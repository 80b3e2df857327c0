"""Classify event recordings: `python classify.py --help`."""

import sys

from evburst.app.cli import classify_main

if __name__ == "__main__":
    sys.exit(classify_main())
