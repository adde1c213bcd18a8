"""The situation of a run: what the parts of its replay share."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tq_broker.model.affinity import Affinity, load_affinity
from tq_broker.model.commands import Command
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.workflow_tasks import RunKey
from tq_broker.worker.conversion import Conversion
from tq_broker.worker.ledger import Ledger
from tq_broker.workflow.errors import BeingEvictedError, ReadOnlyContextError
from tq_broker.workflow.facts import HistorySize

log = logging.getLogger(__name__)


class Situation:
    """One run, now.

    Attributes:
        started: The first event; set before anything runs.
        seed: Of everything random in the run.
        replaying: What runs now has run before.
        read_only_in: What kind of code runs that must change nothing; empty otherwise.
        evicted: Whatever is asked for is refused.
        closing: The command that ends the run.
        error: What makes the workflow task fail; the first counts.
    """

    started: WorkflowExecutionStarted

    def __init__(self, run: RunKey, namespace: str, conversion: Conversion) -> None:
        self.run = run
        self.namespace = namespace
        self.conversion = conversion
        self.ledger = Ledger()
        self.seed = int.from_bytes(
            hashlib.blake2b(run.run_id.encode(), digest_size=7).digest(), "big"
        )
        self.now_ms = 0
        self.first_task_ms = 0
        self.size = HistorySize()
        self.replaying = False
        self.read_only_in = ""
        self.evicted = False
        self.cancel_requested = False
        self.cancellation_reason: str | None = None
        self.closing: Command | None = None
        self.error: BaseException | None = None

    def check(self, what: str) -> None:
        """Raises if ``what`` must not be done now."""
        if self.evicted:
            raise BeingEvictedError
        if self.read_only_in:
            raise ReadOnlyContextError(
                f"cannot {what} in a {self.read_only_in}: it changes the run"
            )

    def affinity_on(self, task_queue: str) -> Affinity | None:
        """What the run hands on to what it starts on ``task_queue``: another one's hosts are
        others."""
        text = self.started.affinity
        if text is None or task_queue != self.started.task_queue:
            return None
        return load_affinity(text)

    @contextmanager
    def read_only(self, code: str) -> Iterator[None]:
        """A block that runs ``code`` which must change nothing."""
        before, self.read_only_in = self.read_only_in, code
        try:
            yield
        finally:
            self.read_only_in = before

    def fail(self, error: BaseException) -> None:
        """The workflow task cannot succeed any more."""
        if self.error is None:
            self.error = error

    def loop_error(self, context: dict[str, Any]) -> None:
        """A callback raised, or an exception was never looked at: said once, not in replay."""
        if not self.replaying:
            error = context.get("exception")
            who = f"{self.started.workflow_type} {self.run.workflow_id}"
            log.error("workflow %s: %s", who, context.get("message"), exc_info=error)
