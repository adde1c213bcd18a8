"""What a start of an activity asks for: the call's arguments, checked, as one value."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from tq_broker.activity import ActivityDefinition, definition_of
from tq_broker.common import (
    ActivityIDConflictPolicy,
    ActivityOptions,
    ActivityOptionsDict,
    check_duration,
    options_from,
    to_ms,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import Kind, Names, check_task_queue, check_text
from tq_broker.model.tasks import check_route, task_fields

ACTIVITY_ID_BYTES_MAX = 200
REMEMBERED = 512
START_DELAY_MAX = timedelta(days=300)
"""What the delay ladder can hold, with a margin."""


class StartOptionsDict(ActivityOptionsDict, total=False):
    """The keywords of a start: those of `ActivityOptions`, and what only a call can say."""

    id: str | None
    id_conflict_policy: ActivityIDConflictPolicy
    id_retention: timedelta
    start_delay: timedelta | None
    reply_to: str | None
    wait_result: bool
    result_type: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """What only a call can say.

    Attributes:
        id: Names the activity, and makes its start idempotent: within ``id_retention`` a second
            start with the same id on the same task queue runs nothing. ``None`` makes an id up.
        id_conflict_policy: What the second start gets.
        id_retention: For how long the id is taken, counted from its last attempt.
        start_delay: Put it on its queue only after this pause (100 ms steps, rounded up).
        reply_to: A reply queue of another program, of the same namespace, that gets the outcome.
        wait_result: False: nobody wants the outcome, and nobody sends it.
        result_type: Type hint of the result, when the activity is given by name.
    """

    id: str | None = None
    id_conflict_policy: ActivityIDConflictPolicy = ActivityIDConflictPolicy.USE_EXISTING
    id_retention: timedelta = timedelta(hours=1)
    start_delay: timedelta | None = None
    reply_to: str | None = None
    wait_result: bool = True
    result_type: Any = None

    def __post_init__(self) -> None:
        if self.id is not None:
            check_text("id", self.id, bytes_max=ACTIVITY_ID_BYTES_MAX)
        if not isinstance(self.id_conflict_policy, ActivityIDConflictPolicy):
            raise InvalidArgument("id_conflict_policy must be an ActivityIDConflictPolicy")
        check_duration("id_retention", self.id_retention, minimum=timedelta(seconds=1))
        if self.start_delay is not None:
            check_duration("start_delay", self.start_delay, minimum=timedelta(0))
            if self.start_delay > START_DELAY_MAX:
                raise InvalidArgument(
                    f"start_delay is {self.start_delay}; the bound is {START_DELAY_MAX}"
                )
        if self.reply_to is not None:
            check_text("reply_to", self.reply_to)
        if self.reply_to is not None and not self.wait_result:
            raise InvalidArgument("reply_to names who wants the outcome; wait_result says nobody")

    def check_waits(self) -> None:
        """Raise `InvalidArgument` if the caller does not get the outcome."""
        if not self.wait_result or self.reply_to:
            raise InvalidArgument("who executes an activity waits for its outcome itself")


class _Called:
    """What can only be called with so many arguments."""

    __slots__ = ()
    activity_type: str
    definition: ActivityDefinition | None

    def check_args(self, args: Sequence[Any]) -> None:
        """Raise `InvalidArgument` if the activity cannot be called with that many."""
        definition = self.definition
        if definition is None or definition.dynamic:
            return
        count, most = len(args), len(definition.arg_types)
        if count > most and not definition.takes_more:
            raise InvalidArgument(
                f"activity {self.activity_type!r} takes at most {most} arguments, got {count}"
            )
        least = definition.least_arguments
        if count < least:
            raise InvalidArgument(
                f"activity {self.activity_type!r} takes at least {least} arguments, got {count}"
            )


@dataclass(frozen=True, slots=True)
class Said(_Called):
    """What a call and the activity's decorator say together.

    ``definition`` is ``None`` if the activity was given by name.
    """

    activity_type: str
    options: ActivityOptions
    start: StartOptions
    definition: ActivityDefinition | None


@dataclass(frozen=True, slots=True)
class Start(_Called):
    """A checked request: everything about a task but its id and arguments.

    ``task`` are fields of an `ActivityTask`.
    """

    activity_type: str
    task_queue: str
    task: Mapping[str, Any]
    options: StartOptions
    delay_ms: int
    result_type: Any
    definition: ActivityDefinition | None


_START_FIELDS = {f.name for f in fields(StartOptions)}


def make_start(names: Names, activity: Any, keywords: Mapping[str, Any]) -> Start:
    """Check a call's activity and keywords against the decorator's options.

    Programs make the same call again and again: the last `REMEMBERED` answers are kept.

    Args:
        activity: A decorated function, or the name of an activity type.

    Raises:
        InvalidArgument: names the argument and its bound.
    """
    if keywords.get("id") is None:
        try:
            return _remembered(names, activity, tuple(keywords.items()))
        except TypeError:
            pass  # something in it cannot be hashed
    return _make_start(names, activity, keywords)


@functools.lru_cache(REMEMBERED)
def _remembered(names: Names, activity: Any, keywords: tuple[tuple[str, Any], ...]) -> Start:
    return _make_start(names, activity, dict(keywords))


def _make_start(names: Names, activity: Any, keywords: Mapping[str, Any]) -> Start:
    return start_of(names, read_call(activity, keywords))


def read_call(activity: Any, keywords: Mapping[str, Any]) -> Said:
    """Check a call's activity and keywords, each by itself. Raises `InvalidArgument`."""
    start_options = StartOptions(**{k: v for k, v in keywords.items() if k in _START_FIELDS})
    said = options_from({k: v for k, v in keywords.items() if k not in _START_FIELDS})
    if said.affinity is not None or said.affinity_group is not None or said.on_lost is not None:
        raise InvalidArgument(
            "affinity, affinity_group and on_lost are for activities of workflows,"
            " which have earlier ones to follow; say a route instead"
        )
    check_route(said)
    definition = None if isinstance(activity, str) else definition_of(activity)
    options = said.over(definition.options if definition else ActivityOptions())
    if definition is not None and definition.dynamic:
        raise InvalidArgument("a dynamic activity is started by the name of a type")
    type_name = definition.name if definition else check_text("activity", activity, bytes_max=200)
    return Said(type_name, options, start_options, definition)


def start_of(names: Names, said: Said) -> Start:
    """All of it, checked. Raises `InvalidArgument`."""
    options, start_options, definition = said.options, said.start, said.definition
    if options.task_queue is None:
        raise InvalidArgument("task_queue is not set, neither at the decorator nor at the call")
    reply_to = start_options.reply_to
    if reply_to is not None and not names.owns(reply_to, Kind.REPLY):
        raise InvalidArgument(
            f"reply_to must be a reply queue of this namespace,"
            f" such as {names.queue(Kind.REPLY, 'my-program')}"
        )
    if definition is not None and start_options.result_type is None:
        result_type = definition.result_type
    else:
        result_type = start_options.result_type or Any
    return Start(
        activity_type=said.activity_type,
        task_queue=check_task_queue(options.task_queue),
        task=task_fields(options) | _id_fields(start_options),
        options=start_options,
        delay_ms=to_ms(start_options.start_delay) if start_options.start_delay else 0,
        result_type=result_type,
        definition=definition,
    )


def _id_fields(options: StartOptions) -> dict[str, Any]:
    if options.id is None:
        return {}
    return {
        "id_retention_ms": to_ms(options.id_retention),
        "id_conflict": options.id_conflict_policy,
    }
