"""Worker processes of a limited task queue, which note in files when activities begin and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from tq_broker.client import BlockingClient

MINUTE = timedelta(minutes=1)
QUEUE = "limited"
PROGRAM = "benchmarks.throttle_worker"


class Workers:
    """Worker processes that note in files when activities begin and end."""

    def __init__(self, url: str, namespace: str, directory: Path, stack: ExitStack) -> None:
        self._where = (url, namespace, QUEUE)
        self._directory = directory
        self._stack = stack
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, slots: int = 50, killed_at: str | None = None) -> subprocess.Popen[bytes]:
        """Start one that ends itself in an instant of `integration.killed_at`, or never."""
        path = self._directory / f"{len(self.processes)}"
        program = ["integration.killed_at", killed_at] if killed_at else [PROGRAM]
        process = subprocess.Popen(
            [sys.executable, "-m", *program, *self._where, str(slots), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self._stack.callback(self._end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        self.processes.append(process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def lines(self, process: subprocess.Popen[bytes] | None = None) -> list[str]:
        paths = sorted(self._directory.iterdir())
        if process is not None:
            paths = [self._directory / f"{self.processes.index(process)}"]
        return [line for path in paths for line in path.read_text().splitlines()]

    def begins(self) -> list[float]:
        return sorted(float(line.split()[0]) for line in self.lines() if not line.endswith("-"))

    def running(self, process: subprocess.Popen[bytes]) -> int:
        lines = self.lines(process)
        return sum(line.endswith("+") for line in lines) - sum(line.endswith("-") for line in lines)


def add(
    client: BlockingClient, name: str, count: int, *arguments: object, key: str | None = None
) -> None:
    client.start_activities(
        name,
        [arguments] * count,
        task_queue=QUEUE,
        start_to_close_timeout=MINUTE,
        wait_result=False,
        rate_limit_key=key,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def most_in_a_window(begins: list[float], rate: float, burst: int) -> float:
    """The most that any window has above ``rate * window + burst``."""
    return max(
        last - first + 1 - rate * (begins[last] - begins[first]) - burst
        for first in range(len(begins))
        for last in range(first, len(begins))
    )
