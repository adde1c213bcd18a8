"""A snapshot: all settings of a namespace as one value, and as bytes.

Rules of this file: it holds everything that `Settings` does, but for cancelled activities, which
are bulky, and verdicts, which only their authors wait for. Of both a reader keeps what it has. A
field that is added has a default, so that older snapshots can be read; a newer one is read without
what is new in it.
"""

from __future__ import annotations

from collections import deque

import msgspec

from tq_broker.converter import MESSAGE_BYTES_MAX, ZlibCodec
from tq_broker.exceptions import InvalidArgument, Malformed, PayloadTooLarge
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.limits import check_limits
from tq_broker.model.parts import PartTable
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import (
    RULE_CHANGES_MAX,
    BackedOff,
    FairnessWeightSet,
    LimitKey,
    LimitState,
    RuleChange,
    Settings,
    TaskQueuePaused,
)

PLAIN_BYTES_MAX = 64 * 1024 * 1024
"""Of a snapshot that is not compressed: nothing makes a reader take more memory."""
PACKED_BYTES_MAX = MESSAGE_BYTES_MAX * 3 // 4 - 1024
"""Of one that is: in a record its bytes are text, which is longer by a third."""

_codec = ZlibCodec()


class State(msgspec.Struct, frozen=True):
    """The fields of `Settings` that are kept."""

    task_queues: dict[str, int] = {}
    workflow_task_queues: dict[str, int] = {}
    prioritized: set[tuple[str, str]] = set()
    fair: set[tuple[str, str]] = set()
    fairness_weights: dict[tuple[str, str], dict[str, FairnessWeightSet]] = {}
    capable: dict[tuple[str, str], dict[tuple[str, ...], int]] = {}
    capabilities: dict[str, set[str]] = {}
    paused: dict[tuple[str, str], TaskQueuePaused] = {}
    back_offs: dict[tuple[str, str], BackedOff] = {}
    rules: dict[str, TrafficRule] = {}
    rule_changes: list[RuleChange] = []
    deployments: Deployments = NO_DEPLOYMENTS
    limits: dict[LimitKey, LimitState] = {}
    part_tables: dict[str, PartTable] = {}

    def settings(self) -> Settings:
        """Settings in this state. They take its collections: use it once."""
        made = Settings()
        for name in State.__struct_fields__:
            setattr(made, name, getattr(self, name))
        made.rule_changes = deque(self.rule_changes, maxlen=RULE_CHANGES_MAX)
        return made


def state_of(settings: Settings, now_ms: int = 0) -> State:
    """The state of ``settings`` now, which later records do not change, without the back-offs that
    are over by ``now_ms``."""
    found = {name: getattr(settings, name) for name in State.__struct_fields__}
    for name, value in found.items():
        if isinstance(value, (dict, set)):
            found[name] = value.copy()
    # The only ones whose values are changed in place.
    found["capable"] = {place: sets.copy() for place, sets in settings.capable.items()}
    found["capabilities"] = {name: have.copy() for name, have in settings.capabilities.items()}
    found["back_offs"] = {
        key: one for key, one in settings.back_offs.items() if one.until_ms > now_ms
    }
    found["rule_changes"] = list(settings.rule_changes)
    return State(**found)


def pack(state: State) -> bytes:
    """``state`` as bytes, compressed.

    Raises:
        PayloadTooLarge: it is over `PLAIN_BYTES_MAX`, or over `PACKED_BYTES_MAX` when compressed.
    """
    plain = msgspec.msgpack.encode(state)
    packed = _codec.encode(plain) if len(plain) <= PLAIN_BYTES_MAX else b""
    if len(plain) > PLAIN_BYTES_MAX or len(packed) > PACKED_BYTES_MAX:
        raise PayloadTooLarge(
            f"a snapshot of the settings is {len(plain)} bytes long, {len(packed)} compressed;"
            f" the bounds are {PLAIN_BYTES_MAX} and {PACKED_BYTES_MAX}"
        )
    return packed


def unpack(packed: bytes) -> State:
    """What `pack` was given. Raises `Malformed`."""
    plain = _codec.decode(packed, PLAIN_BYTES_MAX)
    try:
        state = msgspec.msgpack.decode(plain, type=State)
        _check(state)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidArgument) as error:
        raise Malformed(f"snapshot of the settings: {error}") from error
    return state


def _check(state: State) -> None:
    """Limits have bounds that their types do not know."""
    records = [one for known in state.limits.values() for one in (known.setting, known.default)]
    found = [one.limits for one in records if one is not None and one.limits is not None]
    for table in state.part_tables.values():
        found += table.limits.values()
    for limits in found:
        check_limits(limits)
