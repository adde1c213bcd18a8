"""Traffic rules, as values: which tasks go elsewhere than to their own task queue, and where to.

Rules of this file: a rule that exists is valid by itself; whether it makes sense beside the others
and with the workers that live is for `tq_broker.queues.rule_review`. Texts are compared as they
are; only a type may have the wildcards ``*``, ``?`` and ``[...]``.
"""

from __future__ import annotations

import enum
import math

import msgspec

from tq_broker.common import (
    PRIORITY_FIRST,
    PRIORITY_LAST,
    TIME_MS_MAX,
    WorkerDeploymentVersion,
    check_headers,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import TARGET_BYTES_MAX, check_task_queue, check_text

RULE_ID_BYTES_MAX = 100
TYPE_CHARS_MAX = 200
REASON_CHARS_MAX = 1_000
FAIRNESS_KEY_BYTES_MAX = 200
ORDER_MAX = 1_000_000
TAKE_WITHIN_MS = 10_000
TAKE_WITHIN_MS_MIN, TAKE_WITHIN_MS_MAX = 1_000, 3_600_000


class TaskKind(str, enum.Enum):
    """The two sides of a task queue."""

    ACTIVITY = "activity"
    WORKFLOW = "workflow"


class TrafficRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sends the tasks that it matches to another task queue, a host, or a deployment version.

    Rules are asked in their order; the first one that matches a task decides, alone.

    Attributes:
        id: Names it. A rule that is set again takes the place of the one before.
        order: Lower comes first; equal ones go by id.
        kind: Only activities, or only workflows; ``None``: both.
        type: Only types like this: ``order-*``.
        task_queue: Only tasks of this task queue; "": of all.
        headers: Only tasks that have all these headers.
        memo: Only workflows (and their activities) whose memo has these texts.
        priority: Only tasks of this priority.
        fairness_key: Only tasks with this fairness key; "": with any, or none.
        percent: As many of what matches otherwise, by a stable hash of the id: a greater percentage
            takes those of a smaller one, and more.
        to_task_queue: Its workers get the task; "": those of the task's own task queue.
        to_host: Only its workers on this host get it.
        to_version: Only its workers of this deployment version (``shop.1.4``) get it.
        fallback: What the target does not take comes back. False: it waits there for as long as
            it takes; not possible for a host or a version.
        take_within_ms: How long a task waits for its target before it comes back.
        expires_ms: When the rule ends (epoch ms); 0: when it is removed.
        by, reason, at_ms: Who set it, why and when.

    Raises:
        InvalidArgument: names what is wrong, and what would be right.
    """

    id: str
    order: int = 100
    kind: TaskKind | None = None
    type: str = "*"
    task_queue: str = ""
    headers: dict[str, str] = {}
    memo: dict[str, str] = {}
    priority: int | None = None
    fairness_key: str = ""
    percent: float = 100.0
    to_task_queue: str = ""
    to_host: str = ""
    to_version: str = ""
    fallback: bool = True
    take_within_ms: int = TAKE_WITHIN_MS
    expires_ms: int = 0
    by: str = ""
    reason: str = ""
    at_ms: int = 0

    def __post_init__(self) -> None:
        check_text("rule id", self.id, bytes_max=RULE_ID_BYTES_MAX)
        if len(check_text("type", self.type)) > TYPE_CHARS_MAX:
            raise InvalidArgument(f"type is longer than {TYPE_CHARS_MAX} characters")
        for queue in (self.task_queue, self.to_task_queue):
            if queue:
                check_task_queue(queue)
        if self.to_host:
            check_text("to_host", self.to_host, bytes_max=TARGET_BYTES_MAX)
        if self.to_version:
            WorkerDeploymentVersion.from_canonical_string(self.to_version)
        check_headers("headers", self.headers)
        check_headers("memo", self.memo)
        if self.fairness_key:
            check_text("fairness_key", self.fairness_key, bytes_max=FAIRNESS_KEY_BYTES_MAX)
        if len(self.reason) > REASON_CHARS_MAX:
            raise InvalidArgument(f"reason is longer than {REASON_CHARS_MAX} characters")
        self._check_numbers()
        self._check_action()

    def _check_numbers(self) -> None:
        if not math.isfinite(self.percent) or not 0 < self.percent <= 100:
            raise InvalidArgument(
                f"percent is {self.percent!r}; it must be above 0 and at most 100;"
                " for 0 remove the rule"
            )
        for name, value, least, most in (
            ("order", self.order, 0, ORDER_MAX),
            ("take_within_ms", self.take_within_ms, TAKE_WITHIN_MS_MIN, TAKE_WITHIN_MS_MAX),
            ("expires_ms", self.expires_ms, 0, TIME_MS_MAX),
            ("at_ms", self.at_ms, 0, TIME_MS_MAX),
        ):
            if not least <= value <= most:
                raise InvalidArgument(f"{name} is {value}; it must be from {least} to {most}")
        if self.priority is not None and not PRIORITY_FIRST <= self.priority <= PRIORITY_LAST:
            raise InvalidArgument(
                f"priority is {self.priority};"
                f" it must be from {PRIORITY_FIRST} (first) to {PRIORITY_LAST}"
            )

    def _check_action(self) -> None:
        some_of_them = self.to_host or self.to_version
        if not self.to_task_queue and not some_of_them:
            raise InvalidArgument(
                f"rule {self.id!r} says nowhere to go: name a task queue, a host or a version"
            )
        if self.to_host and self.to_version:
            raise InvalidArgument(
                f"rule {self.id!r} names a host and a version; name one of them, whose workers all"
                " may take what it sends"
            )
        if self.to_task_queue and self.to_task_queue == self.task_queue and not some_of_them:
            raise InvalidArgument(
                f"rule {self.id!r} is a loop: it sends the tasks of {self.task_queue!r} to where"
                " they are; name another task queue"
            )
        if self.to_host and not self.fallback:
            raise InvalidArgument(
                "a rule to a host needs its fallback, because a host may go for good"
            )
        if self.to_version and not self.fallback:
            raise InvalidArgument(
                "a rule to a version needs its fallback, because versions are drained; to give a"
                " version tasks for good, set it current or ramping, or start them with version="
            )

    def is_over(self, now_ms: int) -> bool:
        """Whether its time has passed."""
        return 0 < self.expires_ms <= now_ms

    @property
    def target(self) -> str:
        """Where it sends tasks, in words."""
        where = f"task queue {self.to_task_queue!r}" if self.to_task_queue else "their task queue"
        where += f" on host {self.to_host!r}" if self.to_host else ""
        return f"{where}, version {self.to_version!r}" if self.to_version else where


def matching(rule: TrafficRule) -> str:
    """What a rule matches, in words."""
    parts = [f"{rule.percent:g} % of" if rule.percent < 100 else "all"]
    parts.append(f"{rule.kind.value} tasks" if rule.kind else "tasks")
    if rule.type != "*":
        parts.append(f"of type {rule.type}")
    if rule.task_queue:
        parts.append(f"in {rule.task_queue}")
    parts += [f"with {name}={text}" for name, text in rule.headers.items()]
    parts += [f"with memo {name}={text}" for name, text in rule.memo.items()]
    if rule.priority is not None:
        parts.append(f"of priority {rule.priority}")
    if rule.fairness_key:
        parts.append(f"with fairness key {rule.fairness_key}")
    return " ".join(parts)
