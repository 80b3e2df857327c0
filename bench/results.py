"""Make every table of docs/results.md from results.json files: python bench/results.py runs/evaluate --out tables.md"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evburst.app.results import results_main as main

if __name__ == "__main__":
    sys.exit(main(prog="bench/results.py"))
