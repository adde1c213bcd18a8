"""An observer: looks at task queues again and again, and tells their figures.

A look asks RabbitMQ how much waits in each task queue and all workers what they have begun; which
task queues there are, and their limits, it has from the settings log, which it follows.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Collection, Sequence

from tq_broker.client.backlog import counted
from tq_broker.client.core import ClientCore
from tq_broker.clock import remaining
from tq_broker.exceptions import DeadlineExceeded
from tq_broker.model.composition import Member
from tq_broker.model.control import WorkerInfo
from tq_broker.model.figures import Figures, Look, QueueFigures, Series
from tq_broker.model.limits import Side
from tq_broker.model.names import Kind, check_task_queue
from tq_broker.model.registrations import serving
from tq_broker.queues.settings_log import SettingsLog

QUEUES_PER_S = 200
"""What a look takes at most, beside the client's timeout: a question to RabbitMQ for each queue."""

_Place = tuple[str, Side]


def seen(
    settings: SettingsLog,
    place: tuple[str, Side],
    at: float,
    queues: Collection[QueueFigures],
    workers: Sequence[WorkerInfo],
) -> Look:
    """What is seen at ``at`` (monotonic seconds) of one side of a task queue."""
    name, side = place
    is_activity = side is Side.ACTIVITY
    return Look(
        at=at,
        queues=queues,
        workers=workers,
        limits=settings.limits(side, name),
        is_paused=settings.is_stopped(side.value, name),
        part_limits=settings.part_limits(name) if is_activity else (),
        held_keys=[one.key for one in settings.back_offs(name)] if is_activity else (),
        settings_fault=settings.fault,
    )


class Observer:
    """Looks at the task queues of a client's namespace. Has one owner: not thread-safe.

    Args:
        task_queues: Only these; none means all that are known.
    """

    def __init__(self, core: ClientCore, task_queues: Sequence[str] = ()) -> None:
        self._core = core
        self._wanted = tuple(dict.fromkeys(map(check_task_queue, task_queues)))
        self._settings = SettingsLog(core.broker, core.names, core.clock)
        self._is_following = False
        self._series: dict[tuple[str, Side], Series] = {}

    def look(self, wait_s: float) -> list[Figures]:
        """The figures now, by task queue and side; blocks.

        Rates are known better with each look. The first one looks at the backlogs twice, before
        and after the workers have answered.

        Args:
            wait_s: How long workers may take to answer.

        Raises:
            AccessRefused, BrokerUnavailable, DeadlineExceeded: nobody knows now.
        """
        core, deadline = self._core, self._core.deadline()
        if core.broker.stats(str(core.names.queue(Kind.PARKED)), deadline) is None:
            return []  # nobody has used this namespace
        self._follow(deadline)
        for place in self._known(()):
            self._begin(place)
        workers = self._workers(wait_s, deadline)
        known = self._known(workers)
        for gone in set(self._series) - set(known):
            del self._series[gone]
        estates = {place: self._members(place, workers) for place in known}
        deadline = core.deadline() + sum(map(len, estates.values())) / QUEUES_PER_S
        found = (
            self._figures(place, counted(core, members, workers, deadline).values(), workers)
            for place, members in estates.items()
        )
        return [one for one in found if one is not None]

    @property
    def settings_fault(self) -> str:
        """What of the settings log could not be read; "" if nothing."""
        return self._settings.fault

    def close(self) -> None:
        """Look no more."""
        self._settings.stop()

    def _workers(self, wait_s: float, deadline: float) -> Sequence[WorkerInfo]:
        try:
            return self._core.ping(wait_s).result(remaining(self._core.clock, deadline) + wait_s)
        except concurrent.futures.TimeoutError:
            raise DeadlineExceeded("the workers could not be asked in time") from None

    def _follow(self, deadline: float) -> None:
        core = self._core
        queue = str(core.names.queue(Kind.SETTINGS))
        # Following declares the log: only where somebody has declared it before.
        if self._is_following or core.broker.stats(queue, deadline) is None:
            return
        core.broker.wait_subscribed([self._settings.follow()], deadline)
        self._is_following = True
        self._settings.catch_up(deadline)

    def _known(self, workers: Sequence[WorkerInfo]) -> list[tuple[str, Side]]:
        found = {(name, side) for side in Side for name in self._settings.task_queues(side.value)}
        found |= {(name, Side(side)) for side, name in self._settings.pauses()}
        found |= {
            (name, side)
            for worker in workers
            for name in worker.task_queues
            for side in Side
            if serving((worker,), name, side.value)
        }
        if self._wanted:
            found = {(name, side) for name, side in found if name in self._wanted}
        return sorted(found, key=lambda one: (one[0], one[1].value))

    def _members(self, place: _Place, workers: Sequence[WorkerInfo]) -> list[Member]:
        name, side = place
        return self._settings.composition(side.value, name, workers)

    def _begin(self, place: _Place) -> None:
        series = self._series.setdefault(place, Series(*place))
        if not series.has_looked:
            queues = counted(self._core, self._members(place, ()), (), self._core.deadline())
            series.begin(self._core.clock.monotonic(), queues.values())

    def _figures(
        self, place: _Place, queues: Collection[QueueFigures], workers: Sequence[WorkerInfo]
    ) -> Figures | None:
        name, side = place
        if not queues and not serving(workers, name, side.value):
            return None  # the log knows of it, and it is not there any more
        series = self._series.setdefault(place, Series(*place))
        now = self._core.clock.monotonic()
        return series.look(seen(self._settings, place, now, queues, workers))
