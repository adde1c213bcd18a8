"""An affinity as it travels: whom an activity of a workflow follows, and what if they are lost."""

from __future__ import annotations

import enum

import msgspec

from tq_broker.common import ActivityOptions, TargetKind
from tq_broker.exceptions import InvalidArgument, Malformed


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


def dump_affinity(affinity: Affinity) -> str:
    """As it stands in events."""
    return msgspec.json.encode(affinity).decode()


def load_affinity(text: str) -> Affinity:
    """The inverse of `dump_affinity`. Raises `Malformed`."""
    try:
        return _decode(text)
    except msgspec.DecodeError as error:
        raise Malformed(f"affinity: {error}") from error
