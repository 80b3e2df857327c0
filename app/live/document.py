"""The live page as one HTML document with inlined style and script, and its content security policy."""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "page"


def page(root_path: str) -> str:
    """Return the page's HTML; `root_path` is its path prefix behind a reverse proxy, or empty."""
    document = _read("page.html").replace("/* style */", _read("page.css")).replace("/* script */", _script())
    return document.replace('data-root=""', f'data-root="{html.escape(root_path)}"')


def content_security_policy() -> str:
    """Return the policy that allows only the page's own script, style and connections, and media created in the browser."""
    style, script = (_hash(text) for text in (_read("page.css"), _script()))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data: blob:; "
        "media-src blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _script() -> str:
    return "".join(_read(name) for name in ("plots.js", "connection.js", "page.js"))


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
