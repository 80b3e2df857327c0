"""Convert a trained network into a burst-spiking one: python convert.py --weights FILE --out FILE. See --help."""

import sys

from evburst.app.convert.cli import convert_main

if __name__ == "__main__":
    sys.exit(convert_main())
