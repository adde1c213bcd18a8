"""What becomes of a delivery: one pure decision, made before anything is run.

Rules of this file:

* ``redelivered`` means that somebody may have begun: the attempt is *lost*, and goes to the retry
  policy, never blindly to the activity again;
* a task that is given back has used no attempt;
* a limit of the task queue is asked last, when it is known that nothing else stands in the way: no
  permit is spent on a task that does not run.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from tq_broker.exceptions import TimeoutType
from tq_broker.model import failure
from tq_broker.model.failure import WORKER_LOST, Failure
from tq_broker.model.tasks import ActivityTask


class Known(enum.Enum):
    """What this worker knows of an attempt that arrives."""

    NO = "no"
    OPEN = "open"
    """It is in hand here already: it runs, or its end has not been told yet."""
    ENDED = "ended"
    """It ended here lately, and was reported."""


class Action(enum.Enum):
    """What to do with a delivery."""

    RUN = "run"
    CLAIM = "claim"
    """Run it if nobody has claimed its id before."""
    ASK = "ask"
    """Run it if history says that nobody else may: it must not run more than once."""
    DIVERT = "divert"
    """A traffic rule wants it elsewhere; who started it did not know the rule."""
    SET_APART = "set apart"
    """It is under a limit of its type or key: it waits elsewhere, and comes back with a pass."""
    HOLD = "hold"
    """No slot is free: keep it for a moment, then give it back."""
    GIVE_BACK = "give back"
    """Put it back on its queue as it is; no attempt is used up."""
    ADOPT = "adopt"
    """It is in hand here already; this delivery takes the place of the one before."""
    DROP = "drop"
    """It has been dealt with; only acknowledge it."""
    LOST = "lost"
    """Whoever had it is gone: the attempt has failed."""
    END = "end"
    """It ends without running, with ``failure``."""
    PARK = "park"
    """Nobody can make sense of it; keep it for an operator, with ``reason``."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, with what it needs."""

    action: Action
    failure: Failure | None = None
    reason: str = ""


class Situation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a decision depends on besides the task.

    ``registered`` are the activity types of the worker, for the error message; ``serves`` says
    whether the task's is among them.
    """

    now_ms: int
    redelivered: bool
    known: Known
    cancelled: bool
    serves: bool
    registered: tuple[str, ...]
    answerable: bool
    closing: bool
    free_slots: int
    moved: bool = False
    """Another version is to have the task, or the target of a traffic rule."""
    apart: bool = False
    """It needs a pass, and has none."""


RUN = Decision(Action.RUN)
CLAIM = Decision(Action.CLAIM)
ASK = Decision(Action.ASK)
DIVERT = Decision(Action.DIVERT)
SET_APART = Decision(Action.SET_APART)
HOLD = Decision(Action.HOLD)
ADOPT = Decision(Action.ADOPT)
DROP = Decision(Action.DROP)
LOST = Decision(Action.LOST)
BEGINS = frozenset({Action.RUN, Action.CLAIM, Action.ASK, Action.HOLD})
"""What leads to a run, for which a limited task queue wants a permit."""
STARTS = BEGINS - {Action.HOLD}
"""What leads to a run now."""
LIMITED = Decision(Action.GIVE_BACK, reason="a limit does not allow it now")
CLOSING = Decision(Action.GIVE_BACK, reason="the worker is shutting down")
FORGED = Decision(Action.PARK, reason="reply_to is not a reply queue of this namespace")


def decide(task: ActivityTask, at: Situation) -> Decision:
    """What becomes of ``task`` now."""
    if not at.answerable:
        return FORGED
    known = _if_known(task, at)
    if known is not None:
        return known
    if at.cancelled:
        return Decision(Action.END, failure.canceled("cancelled before it was started"))
    late = timeout(task, at.now_ms)
    if late is not None:
        return Decision(Action.END, failure.timed_out(late))
    if at.redelivered:
        return LOST
    if at.closing:
        return CLOSING
    if at.moved:
        return DIVERT
    if not at.serves:
        return Decision(Action.END, not_registered(task, at.registered))
    if at.apart:
        return SET_APART
    if at.free_slots <= 0:
        return HOLD
    return how_to_start(task)


def how_to_start(task: ActivityTask) -> Decision:
    """What comes before ``task`` may run, now that there is a slot for it."""
    if task.workflow is not None:
        return ASK if task.workflow.claim else RUN
    return CLAIM if task.id_retention_ms else RUN


def _if_known(task: ActivityTask, at: Situation) -> Decision | None:
    if at.known is Known.NO:
        return None
    claims_id = task.id_retention_ms and task.workflow is None
    if claims_id and not task.start_token and not at.redelivered:
        return None  # nothing tells whether it is a second start with the same id: the claim will
    # The same attempt again: its connection broke, it was routed anew, or its publisher sent it
    # a second time. The delivery in hand may be lost, so this one takes its place.
    return ADOPT if at.known is Known.OPEN else DROP


def timeout(task: ActivityTask, now_ms: int) -> TimeoutType | None:
    """Which timeout has fired before the attempt could start, if one has."""
    if not task.scheduled_ms:
        return None
    if task.schedule_to_close_ms and now_ms >= task.scheduled_ms + task.schedule_to_close_ms:
        return TimeoutType.SCHEDULE_TO_CLOSE
    since_ms = task.attempt_scheduled_ms or task.scheduled_ms
    if task.schedule_to_start_ms and now_ms >= since_ms + task.schedule_to_start_ms:
        return TimeoutType.SCHEDULE_TO_START
    return None


def not_registered(task: ActivityTask, registered: tuple[str, ...]) -> Failure:
    """The retryable failure of a type that this worker does not have."""
    names = ", ".join(sorted(registered)) or "none"
    return failure.application(
        f"Activity function {task.activity_type} is not registered on this worker,"
        f" available activities: {names}",
        "NotFoundError",
    )


def lost() -> Failure:
    """The retryable failure of an attempt whose worker is gone."""
    return failure.application("the worker that had this attempt is gone", WORKER_LOST)
