"""Throttle: how exactly the rate of a task queue is kept, while workers die.

``python -m benchmarks.throttle`` measures each rate with each number of workers: a backlog that
grows in spikes, workers with many slots and with few, and in each case a worker killed at a third
of the time, and the one that hands the permits out at two thirds (``kill -9``; another one is
started before, so that their number stays). In between another worker comes, and goes. What is
counted are the begins of activities, as their code saw them.

Two figures per case: the begins in the time measured against ``rate * time``, and how far any
window whatsoever was above ``rate * window + burst``.

Beside that it tells what a limit costs: how fast a backlog is begun without a limit, with the
highest of the rates, and with the highest rate that there is; and the processor time of the workers
per task. ``--quick`` is a short variant of everything.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from benchmarks import servers
from benchmarks.throttle_worker import TIMEOUT
from tq_broker.client import BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.model.limits import RATE_MAX, Limits, default_burst

QUEUE = "throttled"
SLOTS = (500, 2)
"""In turn: half of the workers have few."""
SETTLE_S = 3.0
MARGIN = 1.3
BACKLOG_PER_S_MAX = 15_000
"""No pool of these workers is faster."""
COST_SECONDS_MAX = 10.0
SPIKES = 4
"""Half of the tasks are there at first; the others come in so many spikes."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Case:
    """One rate with so many workers, and what came of it."""

    rate: float
    workers: int
    seconds: float
    begins: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    since: float = 0.0

    @property
    def burst(self) -> int:
        return default_burst(self.rate)

    @property
    def ideal(self) -> float:
        return self.rate * self.seconds

    @property
    def counted(self) -> int:
        """Begins in the time measured."""
        return sum(self.since <= at < self.since + self.seconds for at in self.begins)

    @property
    def is_exact(self) -> bool:
        """Within one task of the ideal, or within 1 %."""
        return abs(self.counted - self.ideal) <= max(1.0, 0.01 * self.ideal)

    @property
    def excess(self) -> float:
        """The most that any window has above ``rate * window + burst``; 0 or less is right."""
        return excess(self.begins, self.rate, self.burst)

    def row(self) -> tuple[str, ...]:
        error = self.counted - self.ideal
        return (
            f"{self.rate:g}/s",
            str(self.workers),
            f"{self.ideal:g}",
            str(self.counted),
            f"{error:+g} ({100 * error / self.ideal:+.2f} %)",
            f"{self.excess:+.2f}",
            "yes" if self.is_exact and self.excess <= 0 else "NO",
        )


HEAD = ("rate", "workers", "ideal", "begun", "error", "above the bound", "kept")


def excess(begins: Sequence[float], rate: float, burst: int) -> float:
    """The most that any window of ``begins`` has above ``rate * window + burst``."""
    worst, lowest = float("-inf"), float("inf")
    for number, at in enumerate(sorted(begins)):
        level = number - rate * at
        lowest = min(lowest, level)
        worst = max(worst, level - lowest + 1 - burst)
    return worst


@dataclass(frozen=True, slots=True)
class Cost:
    """How fast a backlog is begun, under one limit or none."""

    rate: float | None
    per_second: float
    cpu_ms: float
    """Of the workers, per task."""
    unlimited_per_second: float

    def row(self) -> tuple[str, ...]:
        possible = min(self.unlimited_per_second, self.rate or float("inf"))
        lost = 100 * (1 - self.per_second / possible)
        limit = "none" if self.rate is None else f"{self.rate:g}/s"
        return (
            limit,
            f"{possible:.0f}/s",
            f"{self.per_second:.0f}/s",
            f"{lost:+.1f} %",
            f"{self.cpu_ms:.2f} ms",
        )


COST_HEAD = ("limit", "possible", "begun", "lost", "CPU per task")


class Pool:
    """Worker processes; each writes its begins to a file of its own."""

    def __init__(
        self, url: str, namespace: str, directory: Path, slots: Sequence[int] = SLOTS
    ) -> None:
        self._slots = slots
        self._url = url
        self._namespace = namespace
        self._directory = directory
        self._numbers = itertools.count()
        self._processes: dict[subprocess.Popen[bytes], int] = {}
        """With the slots of each."""

    def start(self, count: int) -> None:
        """Start so many, with many slots and with few in turn, and wait until they serve."""
        self._start([self._slots[number % len(self._slots)] for number in range(count)])

    def _start(self, slots: Sequence[int]) -> None:
        fresh = {self._spawn(count): count for count in slots}
        for process in fresh:
            assert process.stdout is not None, "it is a pipe"
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("a worker has ended early")
        self._processes |= fresh

    def _spawn(self, slots: int) -> subprocess.Popen[bytes]:
        arguments = (QUEUE, str(slots), str(self._directory / f"{next(self._numbers)}"))
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.throttle_worker"),
                *(self._url, self._namespace, *arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def replace(self, pid: int | None) -> None:
        """Start one like the one with ``pid`` (or like the oldest one), then kill that one."""
        oldest = next(iter(self._processes))
        victim = next((one for one in self._processes if one.pid == pid), oldest)
        self._start([self._processes.pop(victim)])
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        for pipe in (victim.stdin, victim.stdout):
            assert pipe is not None, "they are pipes"
            pipe.close()

    def come(self) -> None:
        """One more comes."""
        self.start(1)

    def go(self) -> None:
        """The last one that came goes, as it should."""
        process, _ = self._processes.popitem()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "they are pipes"
            pipe.close()
        process.wait()

    def cpu_s(self) -> float:
        """Processor time that those who live have used so far."""
        used = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
        return used / TICKS_PER_S

    def begins(self) -> list[float]:
        """What all of them have begun so far, in order of time."""
        lines = (
            line for path in self._directory.iterdir() for line in path.read_text().splitlines()
        )
        return sorted(float(line.split()[0]) for line in lines)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None, "they are pipes"
                pipe.close()


def measure(case: Case, url: str, *, faults: bool) -> None:
    """Run ``case`` on the broker."""
    namespace = f"throttle-{secrets.token_hex(4)}"
    with (
        BlockingClient.connect(url, namespace=namespace) as client,
        tempfile.TemporaryDirectory() as directory,
    ):
        operations = Operations(client.core)
        # The first task makes the queue; a limit is refused for one that nobody has used.
        _add(client, 1)
        operations.set_limits(QUEUE, lambda _: Limits(rate=case.rate), reason="benchmark")
        tasks = round(case.rate * (case.seconds + SETTLE_S) * MARGIN) + 2 * case.burst + 5
        _add(client, tasks - tasks // 2)
        pool = Pool(url, namespace, Path(directory))
        try:
            pool.start(case.workers)
            time.sleep(SETTLE_S)
            case.since = time.time()
            spike = tasks // 2 // SPIKES + 1
            events = [((n + 0.5) / 10, lambda: _add(client, spike)) for n in range(SPIKES)]
            if faults:
                events += _faults(case, pool, operations)
            for share, happen in sorted(events, key=lambda event: event[0]):
                _wait_until(case.since + share * case.seconds)
                happen()
            _wait_until(case.since + case.seconds)
            case.begins = pool.begins()
        finally:
            pool.close()


def _faults(
    case: Case, pool: Pool, operations: Operations
) -> list[tuple[float, Callable[[], None]]]:
    """What happens to the workers, and at which share of the time."""

    def kill() -> None:
        case.kills.append(time.time())
        pool.replace(None)

    def kill_keeper() -> None:
        keepers = [one.pid for one in operations.workers() if QUEUE in one.banks]
        case.kills.append(time.time())
        pool.replace(keepers[0] if keepers else None)

    return [(1 / 3, kill), (0.5, pool.come), (2 / 3, kill_keeper), (5 / 6, pool.go)]


def measure_costs(url: str, *, workers: int, rate: float, seconds: float) -> list[Cost]:
    """What limits cost the throughput of so many workers."""
    free, cpu_ms = throughput(url, None, workers=workers, seconds=seconds)
    costs = [Cost(None, free, cpu_ms, free)]
    for limit in sorted({rate, RATE_MAX}):
        limited, cpu_ms = throughput(url, limit, workers=workers, seconds=seconds)
        costs.append(Cost(limit, limited, cpu_ms, free))
    return costs


def throughput(
    url: str, rate: float | None, *, workers: int, seconds: float
) -> tuple[float, float]:
    """Begins per second of a backlog that is not worked off meanwhile, and processor time per begin
    (milliseconds)."""
    namespace = f"throttle-{secrets.token_hex(4)}"
    with (
        BlockingClient.connect(url, namespace=namespace) as client,
        tempfile.TemporaryDirectory() as directory,
    ):
        _add(client, 1)
        if rate is not None:
            Operations(client.core).set_limits(QUEUE, lambda _: Limits(rate=rate))
        expected = min(BACKLOG_PER_S_MAX, rate or BACKLOG_PER_S_MAX)
        _add(client, round(expected * (seconds + SETTLE_S) * MARGIN))
        pool = Pool(url, namespace, Path(directory), slots=(SLOTS[0],))
        try:
            pool.start(workers)
            time.sleep(SETTLE_S)
            since, cpu_s = time.time(), pool.cpu_s()
            time.sleep(seconds)
            cpu_s = pool.cpu_s() - cpu_s
            begins = pool.begins()
        finally:
            pool.close()
    inside = [at for at in begins if since <= at < since + seconds]
    # To the last one: should the backlog have been too short, the time after it does not count.
    if not inside:
        return 0.0, 0.0
    return len(inside) / (inside[-1] - since), 1000 * cpu_s / len(inside)


def _add(client: BlockingClient, count: int) -> None:
    calls: list[tuple[()]] = [()] * count
    client.start_activities(
        "hit", calls, task_queue=QUEUE, wait_result=False, start_to_close_timeout=TIMEOUT
    )


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """The rows as a reStructuredText table."""
    rows = [head, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    line = " ".join("=" * width for width in widths)
    told = [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([line, told[0], line, *told[1:], line])


def plot(cases: Sequence[Case], path: Path) -> None:
    """Begins over time beside the ideal line, one picture per case; needs matplotlib."""
    from matplotlib.figure import Figure

    rates = sorted({case.rate for case in cases})
    counts = sorted({case.workers for case in cases})
    figure = Figure(figsize=(4 * len(counts), 3 * len(rates)), layout="constrained")
    axes = figure.subplots(len(rates), len(counts), squeeze=False)
    for case in cases:
        ax = axes[rates.index(case.rate)][counts.index(case.workers)]
        inside = [at - case.since for at in case.begins if 0 <= at - case.since < case.seconds]
        ax.step(inside, range(1, len(inside) + 1), where="post", label="begun")
        ax.plot([0, case.seconds], [0, case.ideal], linestyle="--", label="ideal")
        for killed in case.kills:
            ax.axvline(killed - case.since, color="red", linewidth=0.8)
        ax.set_title(f"{case.rate:g}/s, {case.workers} worker(s)")
        ax.set_xlabel("seconds; red: a kill -9")
        ax.legend()
    figure.savefig(path)


def _check_plotting() -> None:
    """Say that there can be no picture before minutes have passed, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install .[bench]")


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


@click.command()
@click.option("--rates", default="0.2,10,1000", show_default=True, help="Tasks per second.")
@click.option("--workers", default="1,3,10", show_default=True, help="Worker processes.")
@click.option("--seconds", default=60.0, show_default=True, help="Time measured, per case.")
@click.option("--no-faults", is_flag=True, help="Kill nobody.")
@click.option("--broker", metavar="URL", help="A broker that runs already. Default: a private one.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value=Path("throttle.png"),
    help="Write a PNG (needs matplotlib); throttle.png if not said where.",
)
@click.option("--quick", is_flag=True, help="9 seconds, 2 and 10 and 200 per second, 3 workers.")
@click.option("--rst", "rst_file", type=click.Path(path_type=Path), help="Write the table.")
def main(
    *,
    rates: str,
    workers: str,
    seconds: float,
    no_faults: bool,
    broker: str | None,
    picture: Path | None,
    quick: bool,
    rst_file: Path | None,
) -> None:
    """Measure how exactly the rate of a task queue is kept, while workers die."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if picture is not None:
        _check_plotting()
    if quick:
        rates, workers, seconds = "2,10,200", "3", 9.0
    cases = []
    with servers.started(broker) as running:
        for rate, count in itertools.product(_numbers(rates), _numbers(workers)):
            case = Case(rate, int(count), seconds)
            measure(case, running.url, faults=not no_faults)
            cases.append(case)
            click.echo("  ".join(case.row()), err=True)
        costs = measure_costs(
            running.url,
            workers=min(2, int(max(_numbers(workers)))),
            rate=max(_numbers(rates)),
            seconds=min(seconds, COST_SECONDS_MAX),
        )
    text = "\n\n".join(
        (
            table(HEAD, [case.row() for case in cases]),
            table(COST_HEAD, [cost.row() for cost in costs]),
        )
    )
    click.echo(text)
    if rst_file:
        rst_file.write_text(text + "\n")
    if picture:
        plot(cases, picture)


if __name__ == "__main__":
    main()
