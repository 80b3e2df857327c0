"""`python -m evburst COMMAND ...`: the same as the command `evburst`."""

import sys

from evburst.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
