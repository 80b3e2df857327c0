"""Hooks of mkdocs: on the site, the text of a file stands below the link to it."""

from __future__ import annotations

import re
from typing import Any

_LINK = re.compile(r"^\[[a-z0-9_]+\.py\]\((examples/[a-z0-9_]+\.py)\)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert the text of an example after a paragraph that consists of the link to it (see pymdownx.snippets)."""
    return _LINK.sub(lambda link: f'{link[0]}\n\n```{{.python}}\n--8<-- "{link[1]}"\n```', markdown)
