"""An affinity as it travels: whom an activity of a workflow follows, and what if they are lost.

It is said by the activity itself, or by its workflow for all of its activities."""

from __future__ import annotations

import enum

import msgspec

from tq_broker.common import ActivityOptions, TargetKind
from tq_broker.exceptions import InvalidArgument, Malformed

AFFINITY_OPTIONS = ("affinity", "affinity_group", "on_lost")
"""The options that make up one."""


class OnLost(enum.Enum):
    """What becomes of an activity when what it was to follow to is gone."""

    FAIL = "fail"
    RESTART = "restart_affinity"
    WAIT = "wait"


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    """Run where the earlier activities of the run with the same kind and group ran."""

    kind: TargetKind
    group: str = ""
    on_lost: OnLost = OnLost.FAIL

    @property
    def key(self) -> str:
        """What activities must share to follow each other."""
        return f"{self.kind.value}:{self.group}"


_decode = msgspec.json.Decoder(Affinity).decode


def affinity_of(options: ActivityOptions) -> Affinity | None:
    """The affinity that options ask for.

    Raises:
        InvalidArgument: they say how it is to be, but not that there is one.
    """
    if options.affinity is None:
        if options.on_lost is not None or options.affinity_group is not None:
            raise InvalidArgument("on_lost and affinity_group need an affinity, and none is said")
        return None
    return Affinity(
        TargetKind(options.affinity),
        options.affinity_group or "",
        OnLost(options.on_lost or "fail"),
    )


def affinity_under(options: ActivityOptions, inherited: Affinity | None) -> Affinity | None:
    """The affinity of an activity, or a child, of a run whose own is ``inherited``.

    What says by itself where it must run inherits nothing; what says only ``on_lost`` or
    ``affinity_group`` has the rest from its run.

    Raises:
        InvalidArgument: it says how it is to be, and there is none.
    """
    place = options.affinity, options.route, options.version
    if inherited is None or any(one is not None for one in place):
        return affinity_of(options)
    return Affinity(
        inherited.kind,
        options.affinity_group or inherited.group,
        OnLost(options.on_lost) if options.on_lost else inherited.on_lost,
    )


_ANSWERS = {
    OnLost.FAIL: "it fails",
    OnLost.RESTART: "it goes to the task queue, and later ones follow it",
    OnLost.WAIT: "it waits",
}


def explain(affinity: Affinity, *, of_workflow: bool, target: str = "") -> list[str]:
    """Whom an activity follows, or those of a workflow, step by step, for people.

    Args:
        target: The host or process that is known; "" for none.
    """
    who = (
        "it does not bind the workflow itself: each activity of it, and of its children, that is"
        " on the same task queue and does not say where it runs,"
        if of_workflow
        else "an activity"
    )
    group = f" of group {affinity.group!r}" if affinity.group else ""
    where = (
        f"{affinity.kind.value} {target!r}"
        if target
        else (f"the {affinity.kind.value} that the first one of its run has run on")
    )
    return [
        f"its affinity is {affinity.kind.value}{group}: {who} follows to {where}",
        f"when that is lost, {_ANSWERS[affinity.on_lost]}",
    ]


def dump_affinity(affinity: Affinity) -> str:
    """As it stands in events."""
    return msgspec.json.encode(affinity).decode()


def load_affinity(text: str) -> Affinity:
    """The inverse of `dump_affinity`. Raises `Malformed`."""
    try:
        return _decode(text)
    except msgspec.DecodeError as error:
        raise Malformed(f"affinity: {error}") from error
