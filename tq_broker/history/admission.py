"""Whether a start begins a new run: the id's last run against the policies for its reuse."""

from __future__ import annotations

import msgspec

from tq_broker.history.effects import ReplyTo
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.model.requests import StartWorkflow


class Admission(msgspec.Struct, frozen=True):
    """What becomes of a start.

    Attributes:
        begin: A new run has to be started (`tq_broker.history.machine.start`).
        step: What it does to the current run (ends it, signals it) and what is answered already;
            to be stored with that run, if ``step.changed``.
    """

    begin: bool
    step: Step


def admit(
    current: Execution | None, request: StartWorkflow, now_ms: int, sender: ReplyTo | None
) -> Admission:
    """Judge ``request`` by the current run of its workflow id, which may be closed.

    ``current`` is changed if it has to be terminated, or is signalled instead of a new start.
    """
    raise NotImplementedError
