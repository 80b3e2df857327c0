"""Train a detector: python train.py --config configs/train_street.yaml --root FOLDER. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from app.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
