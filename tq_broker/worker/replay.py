"""One run of a workflow, in a worker: events in, commands out.

Rules of this file: it is told the time and everything else by its caller, and does nothing but
run the workflow's code on a deterministic loop. Not thread-safe; each call may come on another
thread, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from tq_broker.converter import DataConverter
from tq_broker.exceptions import TqBrokerError
from tq_broker.model.events import Event
from tq_broker.model.workflow_tasks import QueryAnswer, QueryRequest, RunKey, UpdateRequest
from tq_broker.worker.turn import LocalActivityDone, Turn


class OutOfStep(TqBrokerError):
    """The events do not follow what this replay has seen: throw it away, begin at event 1."""


class Replay:
    """One run in the cache of a worker.

    Attributes:
        last_event_id: The last event it has been given; the next ones begin after it.

    Args:
        definition: `tq_broker.workflow.WorkflowDefinition`.
        failure_exception_types: Of the worker, beside those of the definition: exceptions that
            fail the workflow; others, unless `FailureError`, fail only the workflow task.
    """

    last_event_id: int

    def __init__(
        self,
        definition: object,
        run: RunKey,
        *,
        namespace: str,
        converter: DataConverter,
        failure_exception_types: Sequence[type[BaseException]] = (),
    ) -> None:
        raise NotImplementedError

    def activate(
        self,
        events: Sequence[Event],
        *,
        now_ms: int,
        updates: Sequence[UpdateRequest] = (),
        live: bool = True,
        history_bytes: int = 0,
        continue_as_new_suggested: bool = False,
    ) -> Turn:
        """Take in events, and run the workflow's code as far as it comes.

        Completed workflow tasks among the events are replayed first, each in its own turn.

        Args:
            events: All from ``last_event_id + 1`` to `WorkflowTask.last_event_id`.
            now_ms: The workflow's time in this task. Answer with the same ``started_ms``.
            live: There is a workflow task to be answered; False for a query-only task and for
                a replay test: then only completed tasks are replayed.

        Raises:
            OutOfStep: see there. All other errors are in the turn's ``failure``.
        """
        raise NotImplementedError

    def local_activity_done(self, done: LocalActivityDone, *, now_ms: int) -> Turn:
        """Go on after a local activity has ended. One that is not awaited changes nothing."""
        raise NotImplementedError

    def query(self, request: QueryRequest) -> QueryAnswer:
        """Answer a query; between turns, also after the end of the run."""
        raise NotImplementedError

    def close(self) -> None:
        """Throw it away: the workflow's code ends without effects. May be called twice."""
        raise NotImplementedError
