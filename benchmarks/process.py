"""Process: one peer at one operation, in a Python of its own.

The rules of this file: a process has a session of its own and is ended, with its children, by the
id under which it was started; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType

from benchmarks.order import Order, Sample, heard


class ProcessError(RuntimeError):
    """A peer process ended early or took too long; the message ends with what it complained."""


class PeerProcess:
    """``python -m benchmarks.peers.PEER OPERATION``, alive inside a ``with`` block."""

    def __init__(self, peer: str, operation: str, order: Order, *, timeout_s: float) -> None:
        self._name = f"{peer} {operation}"
        self._command = [sys.executable, "-m", f"benchmarks.peers.{peer}", operation]
        self._command += order.arguments()
        self._deadline_s = time.monotonic() + timeout_s
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> PeerProcess:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None, "both are pipes"
            file.close()
        self._errors.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_word(self, word: str) -> None:
        """Wait until the peer says *word*.

        Raises:
            ProcessError: it will not, or not in time.
        """
        while heard(self._wait_line()) != word:
            pass

    def wait_sample(self) -> Sample:
        """Wait for the answer to the order.

        Raises:
            ProcessError: there is none, or not in time.
        """
        while True:
            line = self._wait_line()
            # A library may print, too.
            if line.startswith("{") and heard(line) is None:
                return Sample.parse(line)

    def go_on(self) -> None:
        """Let a peer that waits for a line on its standard input go on."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def _wait_line(self) -> str:
        assert self._process.stdout is not None, "it is a pipe"
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise ProcessError(f"{self._name} took too long. {self._complaint()}")
            read = os.read(descriptor, 65_536)
            if not read:
                raise ProcessError(f"{self._name} ended early. {self._complaint()}")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")

    def _complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-1500:]
