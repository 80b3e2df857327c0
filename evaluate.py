"""Average precision, energy and latency of a detector: python evaluate.py --dataset KIND --root DIR. See --help."""

import sys

from evburst.app.evaluate.cli import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
