"""Sources: which Python files there are below a directory, and whether they changed."""

from __future__ import annotations

import os
from pathlib import Path

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"}


def snapshot(top: Path) -> dict[str, int]:
    """The ``.py`` files below ``top``, with the time of their last change.

    Hidden directories and installed packages are left out.
    """
    found: dict[str, int] = {}
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if name not in _SKIPPED and name[:1] != "."]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except FileNotFoundError:
                    continue  # an editor replaces files
    return found


class Sources:
    """Looks again each time it is asked."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._seen = snapshot(top)

    def changed(self) -> bool:
        """Whether a file came, went or changed since the last time."""
        before, self._seen = self._seen, snapshot(self._top)
        return self._seen != before
