"""Train a detector: python train.py --config configs/train_street.yaml --root FOLDER. See --help."""

import sys

from evburst.app.train.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
