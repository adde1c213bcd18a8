"""The traffic rules and deployment versions in force, as one connection knows them.

Workers and history follow the settings log anyway, and share what they read by `Traffic.attach`.
A client begins to follow it with the first task that it starts: on the connection that it has, in
the background, and without waiting. What it starts before it has read the rules goes to its own
task queue, whose workers know them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from tq_broker.clock import Clock
from tq_broker.exceptions import DeadlineExceeded, TqBrokerError
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.names import Names
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.queues.broker import Broker, Subscription
from tq_broker.queues.settings_log import SettingsLog

log = logging.getLogger(__name__)

NONE_PRIORITIZED: frozenset[tuple[str, str]] = frozenset()


class Traffic:
    """See the module. Thread-safe; across a fork call `after_fork`."""

    def __init__(self, broker: Broker, names: Names, clock: Clock) -> None:
        self._broker = broker
        self._names = names
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent followed."""
        self._lock = threading.Lock()
        self._logs: list[SettingsLog] = []
        self._own: SettingsLog | None = None
        self._subscription: Subscription | None = None

    def attach(self, settings: SettingsLog) -> None:
        """Somebody follows the log with ``settings`` from now on, until `detach`."""
        with self._lock:
            self._logs = [settings, *self._logs]

    def detach(self, settings: SettingsLog) -> None:
        """``settings`` is followed no more."""
        with self._lock:
            self._logs = [one for one in self._logs if one is not settings]

    @property
    def rules(self) -> RuleTable:
        """The rules, as far as they were read."""
        logs = self._logs
        return logs[0].rules if logs else NO_RULES

    @property
    def deployments(self) -> Deployments:
        """The deployment versions, as far as they were read."""
        logs = self._logs
        return logs[0].deployments if logs else NO_DEPLOYMENTS

    @property
    def prioritized(self) -> frozenset[tuple[str, str]]:
        """Sides and task queues whose tasks wait in their priority queues, as far as is known."""
        logs = self._logs
        return logs[0].prioritized if logs else NONE_PRIORITIZED

    @property
    def fair(self) -> frozenset[tuple[str, str]]:
        """Those whose tasks get fair shares, as far as is known."""
        logs = self._logs
        return logs[0].fair if logs else NONE_PRIORITIZED

    def unknown(self, task_queue: str, capabilities: Sequence[str]) -> list[str]:
        """Those of ``capabilities`` that no worker of the task queue has ever had, as far as the
        log was read."""
        logs = self._logs
        return logs[0].unknown(task_queue, capabilities) if logs else list(capabilities)

    def capabilities(self, task_queue: str) -> set[str]:
        """What the workers of the task queue have, or had once, as far as the log was read."""
        logs = self._logs
        return logs[0].capabilities(task_queue) if logs else set()

    def catch_up(self, deadline: float) -> None:
        """Follow the log, and wait until what is in it now has been read; blocks.

        Raises:
            DeadlineExceeded: it was not read by then.
            BrokerUnavailable, AccessRefused: nor can it be.
        """
        self.follow()
        log_, subscription = self._logs[0], self._subscription
        if log_ is self._own and subscription is not None:
            self._broker.wait_subscribed([subscription], deadline)
        if not log_.catch_up(deadline):
            raise DeadlineExceeded("the settings log was not read to its end")

    def follow(self) -> None:
        """Follow the log from now on, if nobody does; returns at once."""
        if self._logs:
            return
        with self._lock:
            if self._logs:
                return
            # Kept when a worker comes: it would have to begin anew when that worker stops.
            self._own = SettingsLog(self._broker, self._names, self._clock)
            self._logs = [self._own]
        try:
            self._subscription = self._own.follow()
        except TqBrokerError as error:
            log.debug("the settings log is not followed: %s", error)
