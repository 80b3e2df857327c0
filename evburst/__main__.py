"""`evburst COMMAND ...` and `python -m evburst COMMAND ...`."""

import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C while modules are imported ends it without a message, too."""
    try:
        from evburst.app.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:
        from evburst.app.console import exit_code

        return exit_code(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
