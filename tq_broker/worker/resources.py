"""The machine's resources: how much of memory and processor is in use, as Linux tells it.

What counts is the narrower of two: the machine (``/proc``), and the control group of this process
with those around it, of either version, if one of them has a limit. Cached files that the kernel
may drop at any time are not in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.resource_slots import Usage

UNLIMITED = 1 << 60
"""A control group of version 1 without a limit of memory says a number beyond this."""


class _Times(NamedTuple):
    """What was counted until ``at`` (monotonic seconds): ticks of all cores, and seconds of the
    control group that is limited."""

    at: float
    busy: int
    total: int
    group_s: float


class Resources:
    """Reads what is in use. Not thread-safe.

    Args:
        root: Where the file system begins; for tests.

    Raises:
        InvalidArgument: this system does not tell.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._before: _Times | None = None
        try:
            self._groups = list(_groups(root))
            self._machine_memory()
            self._machine_cpu()
        except (OSError, ValueError, LookupError) as error:
            raise InvalidArgument(
                f"resource-based slots need /proc as Linux has it: {error}"
            ) from error

    def usage(self, now: float) -> Usage | None:
        """What is in use, of the processor since the last call; ``None`` at the first one.

        Args:
            now: Monotonic seconds.

        Raises:
            OSError, ValueError, LookupError: the system does not tell any more.
        """
        quota, group_s = self._group_cpu()
        times = _Times(now, *self._machine_cpu(), group_s)
        before, self._before = self._before, times
        if before is None or now <= before.at:
            return None
        cpu = (times.busy - before.busy) / max(1, times.total - before.total)
        if quota:
            cpu = max(cpu, (group_s - before.group_s) / (now - before.at) / quota)
        return Usage(memory=max(self._machine_memory(), self._group_memory()), cpu=cpu)

    # --- the machine ------------------------------------------------------------------------------

    def _machine_memory(self) -> float:
        lines = (self._proc / "meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
        return 1.0 - kilobytes["MemAvailable"] / kilobytes["MemTotal"]

    def _machine_cpu(self) -> tuple[int, int]:
        first = (self._proc / "stat").read_text().splitlines()[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in the first.
        ticks = [int(text) for text in first.split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    # --- control groups ---------------------------------------------------------------------------

    def _group_memory(self) -> float:
        """Of the group that is nearest to its limit; 0 if none has one."""
        return max((group.memory() for group in self._groups), default=0.0)

    def _group_cpu(self) -> tuple[float, float]:
        """How many cores the narrowest group may use, and the seconds that it has; 0 if none."""
        limited = [(quota, group) for group in self._groups if (quota := group.cores())]
        if not limited:
            return 0.0, 0.0
        quota, group = min(limited, key=lambda one: one[0])
        return quota, group.cpu_s()


class _Group:
    """A control group of version 2."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def memory(self) -> float:
        """How much of its limit is in use; 0 without one."""
        most = _text(self._directory / "memory.max")
        if most in ("", "max"):
            return 0.0
        used = int(_text(self._directory / "memory.current"))
        return (used - self._droppable("inactive_file")) / max(1, int(most))

    def _droppable(self, name: str) -> int:
        return _entry(_text(self._directory / "memory.stat"), name)

    def cores(self) -> float:
        """How many cores it may use; 0 without a limit."""
        quota, _, period = _text(self._directory / "cpu.max").partition(" ")
        return 0.0 if quota in ("", "max") else int(quota) / int(period)

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used."""
        return _entry(_text(self._directory / "cpu.stat"), "usage_usec") / 1e6


class _OldGroup(_Group):
    """A control group of version 1: one of its controllers."""

    def memory(self) -> float:
        most = int(_text(self._directory / "memory.limit_in_bytes") or UNLIMITED)
        if most >= UNLIMITED:
            return 0.0
        used = int(_text(self._directory / "memory.usage_in_bytes"))
        return (used - self._droppable("total_inactive_file")) / max(1, most)

    def cores(self) -> float:
        quota = int(_text(self._directory / "cpu.cfs_quota_us") or -1)
        is_counted = (self._directory / "cpuacct.usage").exists()
        if quota <= 0 or not is_counted:
            return 0.0
        return quota / int(_text(self._directory / "cpu.cfs_period_us"))

    def cpu_s(self) -> float:
        return int(_text(self._directory / "cpuacct.usage")) / 1e9


def _groups(root: Path) -> Iterator[_Group]:
    """The control groups of this process and those around them, as far as they can be seen."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from map(_Group, _upwards(mount, path))
        elif {"memory", "cpu"} & {*controllers.split(",")}:
            yield from map(_OldGroup, _upwards(mount / controllers, path))


def _upwards(mount: Path, path: str) -> Iterable[Path]:
    """The directories of a group and of those around it. In a container the path may be one of
    outside: then what is mounted is the container's own."""
    names = [name for name in path.split("/") if name]
    below = [mount.joinpath(*names[:count]) for count in range(len(names), 0, -1)]
    return [directory for directory in (*below, mount) if directory.is_dir()]


def _text(path: Path) -> str:
    """What a file says; nothing if it is not there."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _entry(text: str, name: str) -> int:
    """The number behind ``name``; 0 if there is none."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
