"""A pidfile: tells others the id of this process, while it lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tq_broker.exceptions import InvalidArgument


@contextlib.contextmanager
def pidfile_of(path: Path) -> Iterator[None]:
    """Write our pid to ``path`` and remove it at the end. A stale file is replaced.

    Raises:
        InvalidArgument: the process that it names is alive.
        OSError: it cannot be written.
    """
    pid = _pid_in(path)
    if pid is not None and pid != os.getpid() and _is_alive(pid):
        raise InvalidArgument(f"--pidfile {path}: process {pid} is running")
    # Written aside: whoever reads it never sees half a number.
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(f"{os.getpid()}\n")
    aside.replace(path)
    try:
        yield
    finally:
        # One that cannot be removed is stale, and will be replaced.
        with contextlib.suppress(OSError):
            if _pid_in(path) == os.getpid():
                path.unlink(missing_ok=True)


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0
