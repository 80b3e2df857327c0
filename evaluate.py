"""Average precision, energy and latency of a detector: python evaluate.py --dataset KIND --root DIR. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from app.cli import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main())
