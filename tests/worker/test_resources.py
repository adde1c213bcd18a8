"""What is in use, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.resources import Resources

MEMINFO = "MemTotal:    1000 kB\nMemFree:   100 kB\nMemAvailable:    600 kB\nHugePages_Total: 0\n"


class Machine:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)
        self.busy(0, 0)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def busy(self, user: int, idle: int) -> None:
        self.write("proc/stat", f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\nintr 5\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_control_groups(machine: Machine) -> None:
    resources = Resources(machine.root)
    assert resources.usage(0.0) is None, "the use of processors is one between two looks"
    machine.busy(30, 70)
    usage = resources.usage(1.0)
    assert usage is not None
    assert (usage.memory, usage.cpu) == (pytest.approx(0.4), pytest.approx(0.3))
    assert resources.usage(1.0) is None, "no time has passed"


def test_waiting_for_disks_and_time_of_guests_are_not_counted(machine: Machine) -> None:
    resources = Resources(machine.root)
    resources.usage(0.0)
    machine.write("proc/stat", "cpu 10 5 5 60 20 0 0 0 10 0\n")
    usage = resources.usage(1.0)
    assert usage is not None
    assert usage.cpu == pytest.approx(0.2)


def test_a_limited_group_counts_where_it_is_narrower(machine: Machine) -> None:
    group = "sys/fs/cgroup/pod/box"
    machine.write("proc/self/cgroup", "0::/pod/box\n")
    machine.write(f"{group}/memory.max", "max\n")
    machine.write(f"{group}/cpu.max", "max 100000\n")
    # The group around it has the limits.
    machine.write("sys/fs/cgroup/pod/memory.max", "1000\n")
    machine.write("sys/fs/cgroup/pod/memory.current", "900\n")
    machine.write("sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 100\n")
    machine.write("sys/fs/cgroup/pod/cpu.max", "50000 100000\n")
    machine.write("sys/fs/cgroup/pod/cpu.stat", "usage_usec 1000000\n")
    resources = Resources(machine.root)
    assert resources.usage(0.0) is None
    machine.busy(10, 90)
    machine.write("sys/fs/cgroup/pod/cpu.stat", "usage_usec 1450000\n")
    usage = resources.usage(1.0)
    assert usage is not None
    # 0.45 s of half a core in a second.
    assert (usage.memory, usage.cpu) == (pytest.approx(0.8), pytest.approx(0.9))


def test_groups_of_version_1(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n")
    memory, cpu = "sys/fs/cgroup/memory", "sys/fs/cgroup/cpu,cpuacct/box"
    machine.write(f"{memory}/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write(f"{memory}/box/memory.limit_in_bytes", "1000\n")
    machine.write(f"{memory}/box/memory.usage_in_bytes", "700\n")
    machine.write(f"{memory}/box/memory.stat", "inactive_file 5\ntotal_inactive_file 50\n")
    machine.write(f"{cpu}/cpu.cfs_quota_us", "200000\n")
    machine.write(f"{cpu}/cpu.cfs_period_us", "100000\n")
    machine.write(f"{cpu}/cpuacct.usage", "0\n")
    resources = Resources(machine.root)
    resources.usage(0.0)
    machine.write(f"{cpu}/cpuacct.usage", "1000000000\n")
    usage = resources.usage(1.0)
    assert usage is not None
    assert (usage.memory, usage.cpu) == (pytest.approx(0.65), pytest.approx(0.5))


def test_groups_without_limits_do_not_count(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/\n2:cpu,cpuacct:/\n0::/far/outside\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    resources = Resources(machine.root)
    resources.usage(0.0)
    machine.busy(50, 50)
    usage = resources.usage(1.0)
    assert usage is not None
    assert (usage.memory, usage.cpu) == (pytest.approx(0.4), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("path", "text"),
    [("proc/meminfo", None), ("proc/stat", None), ("proc/meminfo", "x: y\n"), ("proc/stat", "cpu")],
)
def test_a_system_that_does_not_tell_is_refused(
    machine: Machine, path: str, text: str | None
) -> None:
    if text is None:
        (machine.root / path).unlink()
    else:
        machine.write(path, text)
    with pytest.raises(InvalidArgument, match="resource-based slots need /proc"):
        Resources(machine.root)
