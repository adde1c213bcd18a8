"""The supervisor: keeps a number of worker processes running, and ends them in order.

Rules of this file: it starts processes through ``spawn`` and reads ``events``, so it can be
tried without either; it loads no application and opens no connection, so there is little in it
that can go wrong.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tq_broker.cli import exits
from tq_broker.clock import Clock

POLL_S = 0.1
SOURCES_S = 0.5
LIVED_WELL_S = 60.0
"""A process that lived so long has not crashed because it was started."""
CRASHES_MAX = 6
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0
PAUSES_GROWN = 5
"""After so many pauses the longest is reached."""

_HOPELESS = {exits.USAGE, exits.REFUSED, exits.UNAVAILABLE}
"""What a process ends with when starting it again would not help, if it never ran before."""


def pause_s(crashes: int) -> float:
    """How long to wait after so many crashes in a row: 1, 2, 4, ... 30 seconds."""
    return float(min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(crashes - 1, PAUSES_GROWN)))


class Process(Protocol):
    """What is needed of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def send_signal(self, sig: int, /) -> None: ...


class EventSource(Protocol):
    """What is needed of `tq_broker.cli.signals.Events`."""

    def next(self, timeout_s: float | None = None, /) -> object: ...


class _Stage(enum.IntEnum):
    SERVING = 0
    WARM = 1
    COLD = 2
    KILLING = 3


_ORDERS = {
    _Stage.WARM: signal.SIGTERM,
    _Stage.COLD: signal.SIGQUIT,
    _Stage.KILLING: signal.SIGKILL,
}


@dataclass(slots=True)
class _Place:
    """One of the processes, over all its lives.

    ``due`` is when to start it next; ``wanted`` says that its end was our doing; ``refusals`` is
    how often in a row the system had no room for it.
    """

    index: int
    process: Process | None = None
    started: float = 0.0
    due: float = 0.0
    lives: int = 0
    crashes: int = 0
    refusals: int = 0
    wanted: bool = False
    code: int | None = field(default=None)


class Supervisor:
    """Runs until it is told to stop, or until there is no sense in going on.

    Args:
        spawn: Starts the process with that number. After an `OSError` it is tried again.
        changed: Whether sources changed since it was last asked; ``None`` never restarts for
            that.
        say: Takes one line for people.
    """

    def __init__(
        self,
        spawn: Callable[[int], Process],
        count: int,
        clock: Clock,
        events: EventSource,
        *,
        say: Callable[[str], None],
        changed: Callable[[], bool] | None = None,
    ) -> None:
        self._spawn = spawn
        self._places = [_Place(index) for index in range(1, count + 1)]
        self._clock = clock
        self._events = events
        self._say = say
        self._changed = changed
        self._looked = 0.0
        self._stage = _Stage.SERVING
        self._code = exits.OK
        self._to_restart: list[_Place] = []

    def run(self) -> int:
        """Supervise; returns the exit code."""
        while self._stage is _Stage.SERVING or any(p.process for p in self._places):
            now = self._clock.monotonic()
            if self._stage is _Stage.SERVING:
                self._look_at_sources(now)
                self._restart_next()
                self._start_due(now)
            self._hear(self._events.next(POLL_S))
            for place in self._places:
                self._reap(place, self._clock.monotonic())
        return self._code

    def _start_due(self, now: float) -> None:
        for place in self._places:
            if place.process is None and now >= place.due:
                self._start(place, now)

    def _start(self, place: _Place, now: float) -> None:
        try:
            place.process = self._spawn(place.index)
        except OSError as error:
            # No process, memory or descriptor is left (pids.max, ulimit): those that run go on,
            # and there is no number of times after which giving up would be better for them.
            place.refusals += 1
            wait_s = pause_s(place.refusals)
            place.due = now + wait_s
            why = error.strerror or error
            self._say(
                f"process {place.index} cannot be started: {why}; trying again in {wait_s:g}s"
            )
            return
        place.started, place.wanted, place.code = now, False, None
        place.lives, place.refusals = place.lives + 1, 0

    def _hear(self, event: object) -> None:
        if event is signal.SIGHUP:
            if self._stage is _Stage.SERVING:
                self._say("restarting all processes, one after the other")
                self._to_restart = list(self._places)
        elif isinstance(event, signal.Signals):
            cold = event is signal.SIGQUIT and self._stage < _Stage.COLD
            self._stop(_Stage.COLD if cold else _Stage(min(self._stage + 1, _Stage.KILLING)))

    def _stop(self, stage: _Stage) -> None:
        self._stage = stage
        words = {_Stage.WARM: "warm shutdown", _Stage.COLD: "cold shutdown"}
        self._say(words.get(stage, "killing all processes"))
        if stage is not _Stage.WARM and self._code == exits.OK:
            self._code = exits.FAILED
        for place in self._places:
            if place.process is not None:
                place.wanted = True
                place.process.send_signal(_ORDERS[stage])

    def _reap(self, place: _Place, now: float) -> None:
        if place.process is None:
            return
        code = place.process.poll()
        if code is None:
            return
        lived_s = now - place.started
        place.process, place.code = None, code
        if self._stage is not _Stage.SERVING:
            if code != exits.OK and self._code == exits.OK:
                self._code = exits.FAILED
        elif place.wanted:
            place.due = now
        else:
            self._crashed(place, code, lived_s, now)

    def _crashed(self, place: _Place, code: int, lived_s: float, now: float) -> None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        place.crashes = 1 if lived_s >= LIVED_WELL_S else place.crashes + 1
        hopeless = code in _HOPELESS and place.lives == 1 and lived_s < LIVED_WELL_S
        # A mistake that was typed meanwhile is corrected by typing.
        hopeless |= code == exits.USAGE and self._changed is not None
        if self._changed is not None and (hopeless or place.crashes >= CRASHES_MAX):
            self._say(f"process {place.index} {how}; waiting for a change of the sources")
            place.due = float("inf")
            return
        if hopeless or place.crashes >= CRASHES_MAX:
            times = "" if hopeless else f", {place.crashes} times in a row"
            self._say(f"process {place.index} {how}{times}; giving up")
            self._code = code if hopeless else exits.GAVE_UP
            self._stop(_Stage.WARM)
            return
        wait_s = pause_s(place.crashes)
        place.due = now + wait_s
        self._say(f"process {place.index} {how}; starting it again in {wait_s:g}s")

    def _look_at_sources(self, now: float) -> None:
        if self._changed is None or now < self._looked + SOURCES_S:
            return
        self._looked = now
        if self._changed():
            self._say("sources have changed, restarting")
            for place in self._places:
                place.due, place.crashes = now, 0
                if place.process is not None and not place.wanted:
                    place.wanted = True
                    place.process.send_signal(signal.SIGTERM)

    def _restart_next(self) -> None:
        """One at a time, so that the others serve meanwhile."""
        if any(p.wanted and p.process is not None for p in self._places):
            return
        while self._to_restart:
            place = self._to_restart.pop(0)
            if place.process is not None:
                place.wanted = True
                place.process.send_signal(signal.SIGTERM)
                return
