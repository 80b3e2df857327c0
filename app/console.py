"""Common behaviour of all commands: messages on stderr, results on stdout, signals and exit codes.

Exit codes: 0 success; 1 an error in the data, the model or the environment, reported as one line on stderr; 2 wrong usage;
128 + N terminated by signal N. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from evburst.data.errors import ConfigError, EvburstError
from evburst.data.text import without_controls

if TYPE_CHECKING:
    from evburst.data.events import Faults

LOG = logging.getLogger("evburst")
"""The project's root logger; modules log to its children, `logging.getLogger(__name__)`."""

_PREFIXES = {logging.DEBUG: "debug: ", logging.WARNING: "warning: ", logging.ERROR: "error: "}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_NAMES = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENXIO, errno.EMFILE, errno.ENFILE),
)
"""Errors of the operating system that say something of the surroundings, whichever line met them."""

_UNLOADABLE = ("shared object", "DLL load failed", "Library not loaded")
"""What Linux, Windows and macOS say of a library that is missing, or for which there is not enough memory."""
_LOADING = {
    "libGL": ": for OpenCV on a system without a display, pip install --force-reinstall --no-deps opencv-python-headless",
    "failed to map segment": ": too little memory is free or allowed (ulimit -v), or nothing in its folder may be executed",
}
"""Remedies for libraries that cannot be loaded, by words of the error."""

_CALLBACK_S = 0.05
"""Time after which a callback of a C library, in which a KeyboardInterrupt was lost, has returned."""

Printed = str | Iterator[str] | None
"""Text for stdout, or several texts, each printed as soon as it is known."""


def run(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], Printed], argv: Sequence[str] | None) -> int:
    """Parse the arguments, run `main` and print what it returns on stdout; report expected errors as one line on stderr.

    Returns:
        The exit code.
    """
    _open_standard_streams()
    add_common_flags(parser)
    args = parse(parser, _joined(sys.argv[1:] if argv is None else argv))
    if args.quiet and args.verbose:  # one before a subcommand, the other after it
        parser.error("argument --verbose: not allowed with argument --quiet")
    limit_spinning()
    with messages(logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO), signals() as received:
        try:
            _check_surroundings()
            result = main(args)
            for text in [result] if isinstance(result, str) else result or ():
                if code := _print_result(text):
                    return code
        except KeyboardInterrupt as error:
            return _interrupted(received, error)
        except Exception as error:
            if received and not isinstance(error, EvburstError):  # what was interrupted may fail in its own way
                return _interrupted(received, error)
            message = _message(error)
            if args.debug or message is None:
                raise
            LOG.error("%s", message)
            return 1
        return 0


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; help and version end the process, printed as results are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: it may lack letters of help and results
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            return parser.parse_args(argv)
    except SystemExit as end:
        with messages(logging.WARNING):
            code = _print_result(shown.getvalue().removesuffix("\n")) if shown.getvalue() else 0
        raise SystemExit(code or end.code) from None


def _open_standard_streams() -> None:
    """Open /dev/null in place of standard streams that the caller has closed.

    Otherwise the next file that is opened would take their number, and receive what libraries write there; and Python would
    print on stdout what is meant for stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def warn_of_repairs(recording: Path | str, faults: Faults) -> None:
    """Log what was repaired in a recording, if anything was."""
    if faults.found():
        LOG.warning("%s: repaired: %s", recording, faults)


def sample_note(energy: dict[str, Any]) -> str:
    """Return how many windows were counted, to be appended to "per window"; "" if all were, or none because the ANN ran.

    Args:
        energy: from `evburst.eval.energy.energy_figures`.
    """
    counted, windows = energy["counted_windows"], energy["windows"]
    return f" (of {counted} of {windows} windows)" if 0 < counted < windows else ""


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal has ended."""
    exec("")  # CPython remembers a KeyboardInterrupt that left an `exec`, and would end by SIGINT; the next `exec` clears that
    return 128 + number


def _interrupted(received: list[int], error: BaseException) -> int:
    """Say so, with the notes of what was written (`evburst.data.files.readable_note`), and return the exit code."""
    LOG.warning("%s", ": ".join(["interrupted", *getattr(error, "__notes__", [])[:1]]))
    return exit_code(received[0] if received else signal.SIGINT)


def _message(error: Exception) -> str | None:
    """Return the text for an expected error; None for a bug."""
    if isinstance(error, EvburstError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        what = "read or written" if error.errno == errno.EIO else "written"
        return f"{_location(error)}cannot be {what} ({error.strerror}); what was written so far is readable"
    if isinstance(error, OSError) and error.errno in _NAMES and error.filename:
        return f"{_location(error)}cannot be used ({error.strerror})"
    if _is_out_of_memory(error):
        return (
            f"there is not enough memory for this ({_first_line(error)}): "
            "a smaller sensor, batch or number of workers needs less"
        )
    if isinstance(error, ImportError) and any(words in str(error) for words in _UNLOADABLE):
        remedy = next((text for words, text in _LOADING.items() if words in str(error)), "")
        return f"a library cannot be loaded ({_first_line(error)}){remedy}"
    return None


def _location(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so with a RuntimeError."""
    message = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in message or "allocate memory" in message


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments with `--columns -,t,x,y,p` as one, because argparse takes what begins with '-' for a flag."""
    joined: list[str] = []
    for text in argv:
        if text.startswith("-,") and joined and joined[-1].startswith("--") and joined[-1].endswith("columns"):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def add_common_flags(parser: argparse.ArgumentParser, of_subcommand: bool = False) -> None:
    """Add the flags that every command has; those of a subcommand, if not given, leave the values of its command."""
    default = argparse.SUPPRESS if of_subcommand else False
    group = parser.add_argument_group("messages")
    verbosity = group.add_mutually_exclusive_group()
    for where, flag, text in (
        (verbosity, "--quiet", "print only warnings and errors on stderr, no progress bar"),
        (verbosity, "--verbose", "print more notes on stderr"),
        (group, "--debug", "show the traceback of expected errors too"),
    ):
        where.add_argument(flag, action="store_true", default=default, help=text)


def limit_spinning() -> None:
    """Limit how long OpenMP's threads spin while they wait. Call this before torch is imported.

    torch and numba each have a thread pool. GNU OpenMP's threads wait by spinning, which takes the cores from the other pool:
    next to one busy process on 2 cores, a window took seconds instead of 0.05 s. A short spin costs nothing on an idle
    machine and prevents this. The library reads the variable when it is loaded.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def show_progress() -> bool:
    """Whether to show progress bars: stderr is a terminal and `--quiet` was not given."""
    return sys.stderr.isatty() and LOG.isEnabledFor(logging.INFO)


def absolute_progress(bar: Any) -> Callable[[int], object]:
    """Return a callback that sets a tqdm progress bar to the number of items done so far."""
    return lambda done: bar.update(done - bar.n)


@contextmanager
def messages(level: int) -> Iterator[None]:
    """Print log records of `level` and above as plain lines on stderr."""
    handler, previous = _LineHandler(), (LOG.level, LOG.propagate)
    LOG.addHandler(handler)
    LOG.setLevel(level)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.level, LOG.propagate = previous


class _LineHandler(logging.Handler):
    """Writes lines such as "warning: TEXT" to the current `sys.stderr`, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        line = _PREFIXES.get(record.levelno, "") + without_controls(record.getMessage())
        tqdm = sys.modules.get("tqdm")
        try:
            if tqdm is None:
                print(line, file=sys.stderr, flush=True)
            else:
                tqdm.tqdm.write(line, file=sys.stderr)
        except OSError:
            return  # stderr was closed; a lost message must not end the run


@contextmanager
def signals() -> Iterator[list[int]]:
    """Handle SIGTERM, SIGHUP and Windows' SIGBREAK like Ctrl-C: raise KeyboardInterrupt in the main thread.

    Signals that were ignored (nohup) stay ignored, and further signals during shutdown have no effect. In forked processes
    the signals keep their default action. A KeyboardInterrupt is raised once more if it was raised in a callback of a C
    library, such as the compiler of the kernels, from which it cannot reach the main program.

    Yields:
        The numbers of the signals received so far.
    """
    received, owner = list[int](), os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        if len(received) == 1 or lost:
            while lost:
                lost.pop().cancel()
            raise KeyboardInterrupt

    def repeat(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            received[:] = received or [signal.SIGINT]
            lost.append(threading.Timer(_CALLBACK_S, interrupt_main, received[:1]))
            lost[-1].start()
        else:
            report(unraisable)

    is_main = threading.current_thread() is threading.main_thread()
    report, lost = sys.unraisablehook, list[threading.Timer]()
    numbers = _ending_signals() if is_main else []
    replaced = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, interrupt)
    if is_main:
        sys.unraisablehook = repeat
    try:
        yield received
    finally:
        sys.unraisablehook = report
        for timer in lost:
            timer.cancel()
            timer.join()
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back Ctrl-C and the signals of `signals` until the end of the block, also one that an error ends; outside the main
    thread nothing is done."""
    held = list[int]()
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, *_ending_signals()) if is_main else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _ending_signals() -> list[int]:
    """Return the numbers of the signals, other than Ctrl-C's, that end a program and exist on this system."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def _check_surroundings() -> None:
    """Raise ConfigError if libraries would fail without a readable message: torch's if the current folder was deleted, numba if
    NUMBA_NUM_THREADS is a number below 1."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("the current folder no longer exists: change to another one") from None
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    if re.fullmatch(r"\s*[+-]?\d+\s*", threads) and int(threads) < 1:
        raise ConfigError(f"NUMBA_NUM_THREADS is {threads}: set a number of threads from 1 on, or none")


def _print_result(text: str) -> int:
    """Print on stdout and flush, so that a write error is reported here and not at exit; return the exit code."""
    try:
        print(without_controls(text), flush=True)
    except OSError as error:
        with suppress(OSError):  # the rest of the buffer goes to /dev/null at exit instead of raising again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL):
            return 1  # the reader closed the pipe, as `head` does
        LOG.error("standard output cannot be written (%s)", error.strerror)
        return 1
    return 0
