from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterable

import pytest

from tq_broker.cli import exits
from tq_broker.cli.supervisor import CRASHES_MAX, POLL_S, Supervisor, pause_s
from tq_broker.testing.manual_clock import ManualClock

TERM, QUIT, KILL, HUP = signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL, signal.SIGHUP


class FakeProcess:
    """Ends with ``code`` when it is told to, or at once with ``ends``."""

    def __init__(self, pid: int, ends: int | None = None, heeds: Iterable[int] = (TERM,)) -> None:
        self.pid = pid
        self.code = ends
        self.heeds = {*heeds, KILL}
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int, /) -> None:
        self.signals.append(sig)
        if sig in self.heeds and self.code is None:
            self.code = -KILL if sig == KILL else exits.FAILED if sig == QUIT else exits.OK


class World:
    """Processes, the time and the signals of one run."""

    def __init__(self, count: int = 1) -> None:
        self.clock = ManualClock()
        self.count = count
        self.started: list[tuple[int, FakeProcess]] = []
        self.said: list[str] = []
        self.make: Callable[[int], FakeProcess] = FakeProcess
        self.script: dict[int, object] = {}
        self.tick = 0
        self.changed: Callable[[], bool] | None = None

    def next(self, timeout_s: float | None = None, /) -> object:
        assert timeout_s == POLL_S
        self.clock.advance(timeout_s)
        self.tick += 1
        event = self.script.get(self.tick)
        if callable(event):
            event()
            return None
        return event

    def spawn(self, index: int) -> FakeProcess:
        process = self.make(1000 + len(self.started))
        self.started.append((index, process))
        return process

    def run(self, script: dict[int, object]) -> int:
        self.script = script
        return Supervisor(
            self.spawn, self.count, self.clock, self, say=self.said.append, changed=self.changed
        ).run()


def test_all_processes_are_started_and_ended() -> None:
    world = World(3)
    assert world.run({5: TERM}) == exits.OK
    assert [index for index, _ in world.started] == [1, 2, 3]
    assert all(process.signals == [TERM] for _, process in world.started)


@pytest.mark.parametrize(("second", "order"), [(TERM, QUIT), (signal.SIGINT, QUIT), (QUIT, QUIT)])
def test_a_second_signal_is_cold(second: int, order: int) -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, heeds=(QUIT,))
    assert world.run({1: TERM, 5: second}) == exits.FAILED
    assert world.started[0][1].signals == [TERM, order]


def test_quit_is_cold_at_once_and_a_third_signal_kills() -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, heeds=())
    assert world.run({1: QUIT, 5: TERM}) == exits.FAILED
    assert world.started[0][1].signals == [QUIT, KILL]


def test_a_crashed_process_is_started_again_after_a_pause() -> None:
    world = World(2)

    def crash() -> None:
        world.started[0][1].code = -signal.SIGSEGV

    assert world.run({3: crash, 30: TERM}) == exits.OK
    assert [index for index, _ in world.started] == [1, 2, 1]
    assert "process 1 was killed by signal 11; starting it again in 1s" in world.said


def test_pauses_grow() -> None:
    assert [pause_s(crashes) for crashes in (1, 2, 3, 6, 20, 9000)] == [1, 2, 4, 30, 30, 30]


def test_a_crash_loop_ends_with_a_code() -> None:
    world = World(2)
    world.make = lambda pid: FakeProcess(pid, ends=1 if pid != 1001 else None)
    assert world.run({}) == exits.GAVE_UP
    assert [index for index, _ in world.started].count(1) == CRASHES_MAX
    assert world.started[1][1].signals == [TERM]
    assert world.said[-2:] == [
        f"process 1 ended with code 1, {CRASHES_MAX} times in a row; giving up",
        "warm shutdown",
    ]


def test_a_process_that_the_system_has_no_room_for_is_tried_again_for_ever() -> None:
    """Found: at pids.max one crash ended all processes."""
    world = World(2)
    refusals = 2 * CRASHES_MAX

    def make(pid: int) -> FakeProcess:
        nonlocal refusals
        if pid > 1001 and refusals:
            refusals -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return FakeProcess(pid)

    def crash() -> None:
        world.started[0][1].code = 1

    world.make = make
    assert world.run({3: crash, 10_000: TERM}) == exits.OK
    assert [index for index, _ in world.started] == [1, 2, 1]
    assert not refusals
    refused = "process 1 cannot be started: Resource temporarily unavailable; trying again in"
    assert [line.removeprefix(refused) for line in world.said if line.startswith(refused)] == [
        f" {wait_s}s" for wait_s in (1, 2, 4, 8, 16, *[30] * (CRASHES_MAX + 1))
    ]


def test_refusals_are_counted_anew_after_a_start() -> None:
    world = World()
    refused = iter([True, False, True, False])

    def make(pid: int) -> FakeProcess:
        if next(refused):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return FakeProcess(pid)

    def crash() -> None:
        world.started[0][1].code = 1

    world.make = make
    assert world.run({100: crash, 200: TERM}) == exits.OK
    waits = [line[-2:] for line in world.said if "cannot be started" in line]
    assert waits == ["1s", "1s"]


def test_a_process_that_lived_well_begins_anew() -> None:
    world = World()
    script: dict[int, object] = {}

    def crash() -> None:
        world.started[-1][1].code = 1

    for crashes in range(1, CRASHES_MAX + 3):
        script[crashes * 700] = crash
    script[10_000] = TERM
    assert world.run(script) == exits.OK
    assert len(world.started) == CRASHES_MAX + 3


@pytest.mark.parametrize("code", [exits.USAGE, exits.UNAVAILABLE, exits.REFUSED])
def test_what_cannot_run_at_all_is_not_tried_again(code: int) -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, ends=code)
    assert world.run({}) == code
    assert len(world.started) == 1


def test_what_ran_before_is_tried_again_without_a_broker() -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, ends=exits.UNAVAILABLE if pid == 1001 else None)

    def crash() -> None:
        world.started[0][1].code = 1

    assert world.run({3: crash, 100: TERM}) == exits.OK
    assert len(world.started) == 3


def test_an_activity_that_ends_its_process_with_any_code_does_not_end_the_others() -> None:
    """Found: codes that mean a start in vain were believed after hours of work, too."""
    world = World()

    def end() -> None:
        world.started[0][1].code = exits.UNAVAILABLE

    assert world.run({700: end, 1000: TERM}) == exits.OK
    assert len(world.started) == 2


def test_hup_restarts_one_after_the_other() -> None:
    world = World(2)
    world.make = lambda pid: FakeProcess(pid, heeds=(TERM,) if pid > 1001 else ())

    def end(which: int) -> Callable[[], None]:
        def do() -> None:
            world.started[which][1].code = exits.OK

        return do

    def only_the_first_was_told() -> None:
        assert [process.signals for _, process in world.started] == [[TERM], []]

    script = {2: HUP, 5: only_the_first_was_told, 6: end(0), 10: end(1), 20: TERM}
    assert world.run(script) == exits.OK
    assert [index for index, _ in world.started] == [1, 2, 1, 2]


def test_a_change_of_the_sources_restarts_all() -> None:
    world = World(2)
    answers = iter([False, True])
    world.changed = lambda: next(answers, False)
    assert world.run({40: TERM}) == exits.OK
    assert [index for index, _ in world.started] == [1, 2, 1, 2]


def test_what_does_not_start_waits_for_a_change() -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, ends=exits.USAGE if pid == 1000 else None)
    answers = iter([False] * 10 + [True])
    world.changed = lambda: next(answers, False)
    assert world.run({100: TERM}) == exits.OK
    assert len(world.started) == 2
    assert world.said[0] == "process 1 ended with code 2; waiting for a change of the sources"


def test_a_mistake_that_was_typed_meanwhile_waits_for_a_change() -> None:
    world = World()
    world.make = lambda pid: FakeProcess(pid, ends=exits.USAGE if pid == 1001 else None)
    answers = iter([False, True, False, False, True])
    world.changed = lambda: next(answers, False)
    assert world.run({100: TERM}) == exits.OK
    assert len(world.started) == 3
