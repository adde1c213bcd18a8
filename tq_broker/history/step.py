"""What one message, or the passing of time, has come to."""

from __future__ import annotations

import msgspec

from tq_broker.history.effects import Effect
from tq_broker.history.state import Execution
from tq_broker.model.events import Event


class Step(msgspec.Struct, frozen=True):
    """An answer of the machine: store it, then carry out its effects.

    Attributes:
        first_event_id: Id of the first of ``events``.
        data: ``events`` as `tq_broker.model.events.dump_events` encodes them; empty without any.
        changed: The state is another than before and has to be stored. Without it there are no
            events and no next run, but there may be effects (an answer, a query passed on).
        next_run: The next run of the chain, to be stored in the same transaction.
    """

    effects: list[Effect] = []
    events: list[Event] = []
    first_event_id: int = 0
    data: bytes = b""
    changed: bool = False
    next_run: NextRun | None = None


class NextRun(msgspec.Struct, frozen=True):
    """A run that continues another, and its own first step."""

    run: Execution
    step: Step
