"""Settings of detection that concern recordings only. This module imports nothing, so that `--help` stays fast."""

from __future__ import annotations

_DETECT = "`evburst detect` has it"
_SPEED = "--speed sets how fast a file is played"

OF_RECORDINGS = {
    "window_events": "--window-ms sets the length of windows",
    "stride_ms": "--window-ms sets the length of windows, which do not overlap",
    "batch": "",
    "start_s": "a recording is sought on the page or in the window while it plays",
    "max_windows": "--seconds ends a run",
    "classes": _DETECT,
    "track": _DETECT,
    "tracking": _DETECT,
    "sinks": "--record keeps the events; `evburst detect` writes boxes",
    "slow": _SPEED,
    "fps": _SPEED,
    "overwrite": "--overwrite lets --record replace a file",
}
"""Settings of detection that live detection does not have, and what to use instead; "": nothing."""


def refusal(names: list[str]) -> str:
    """Return the error for those of `OF_RECORDINGS` that were given."""
    listed = ", ".join(f"detect.{name}" + (f" ({OF_RECORDINGS[name]})" if OF_RECORDINGS[name] else "") for name in names)
    return f"live detection has no {listed}; settings of recordings have to be left out"
