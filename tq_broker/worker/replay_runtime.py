"""The runtime of a run: what its code calls, handed on to the parts of its replay."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property
from random import Random
from typing import Any, NoReturn

from tq_broker.converter import PayloadConverter
from tq_broker.model.commands import ModifyProperties
from tq_broker.model.payload import Payload
from tq_broker.model.tasks import retry_policy
from tq_broker.worker.replay_activities import ReplayActivities
from tq_broker.worker.replay_children import ReplayChildren
from tq_broker.worker.replay_external import ReplayExternal
from tq_broker.worker.replay_handlers import ReplayHandlers, update_info
from tq_broker.worker.replay_local import ReplayLocal
from tq_broker.worker.replay_patches import ReplayPatches
from tq_broker.worker.replay_timers import ReplayTimers
from tq_broker.worker.situation import Situation
from tq_broker.workflow.calls import ActivityCall, ChildCall, Continuation, LocalActivityCall
from tq_broker.workflow.definition import Handler, Kind
from tq_broker.workflow.errors import ContinueAsNewError
from tq_broker.workflow.facts import Info, ParentInfo, UpdateInfo
from tq_broker.workflow.handles import ActivityHandle, ChildWorkflowHandle

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class ReplayRuntime:
    """`tq_broker.workflow.runtime.Runtime`, of one run."""

    def __init__(
        self,
        situation: Situation,
        *,
        timers: ReplayTimers,
        activities: ReplayActivities,
        local: ReplayLocal,
        external: ReplayExternal,
        children: ReplayChildren,
        handlers: ReplayHandlers,
        patches: ReplayPatches,
    ) -> None:
        self._situation = situation
        self._handlers = handlers
        self._memo: dict[str, Payload] | None = None
        self._details = ""
        self._generators = 0
        # What needs no word here is the part's own.
        self.start_activity: Callable[[ActivityCall], ActivityHandle[Any]] = activities.start
        self.start_local_activity: Callable[[LocalActivityCall], ActivityHandle[Any]] = local.start
        self.start_child: Callable[[ChildCall], Coroutine[Any, Any, ChildWorkflowHandle[Any]]] = (
            children.start
        )
        self.cancel_external = external.cancel
        self.sleep = timers.sleep
        self.wait_condition = timers.wait_condition
        self.patched = patches.patched
        self._external = external
        self.extern_functions: Mapping[str, Callable[..., Any]] = {}

    # --- facts ----------------------------------------------------------------------------------

    @cached_property
    def info(self) -> Info:
        run, situation = self._situation.started, self._situation
        parent = run.parent
        return Info(
            namespace=situation.namespace,
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            workflow_type=run.workflow_type,
            task_queue=run.task_queue,
            attempt=run.attempt,
            first_execution_run_id=run.first_run_id,
            continued_run_id=run.continued_run_id,
            cron_schedule=run.cron_schedule or None,
            execution_timeout=_duration(run.execution_timeout_ms),
            run_timeout=_duration(run.run_timeout_ms),
            task_timeout=timedelta(milliseconds=run.task_timeout_ms),
            headers=run.headers,
            parent=None
            if parent is None
            else ParentInfo(
                namespace=situation.namespace,
                workflow_id=parent.workflow_id,
                run_id=parent.run_id,
            ),
            priority=run.priority,
            fairness_key=run.fairness_key or None,
            fairness_weight=run.fairness_weight,
            retry_policy=None if run.retry_policy is None else retry_policy(run.retry_policy),
            start_time=_EPOCH + timedelta(milliseconds=situation.first_task_ms),
            workflow_start_time=_EPOCH + timedelta(milliseconds=run.time_ms),
            history=lambda: situation.size,
        )

    @property
    def now_ms(self) -> int:
        return self._situation.now_ms

    @property
    def replaying(self) -> bool:
        return self._situation.replaying

    @property
    def read_only(self) -> bool:
        return bool(self._situation.read_only_in)

    @property
    def payload_converter(self) -> PayloadConverter:
        return self._situation.conversion.converter.payload_converter

    @property
    def cancellation_reason(self) -> str | None:
        return self._situation.cancellation_reason

    # --- randomness -----------------------------------------------------------------------------

    @property
    def random_seed(self) -> int:
        return self._situation.seed

    @cached_property
    def _random(self) -> Random:
        return Random(self._situation.seed)

    def random(self) -> Random:
        self._situation.check("draw a random number")
        return self._random

    def new_random(self) -> Random:
        self._situation.check("make a random generator")
        self._generators += 1
        return Random(f"{self._situation.seed}/{self._generators}")

    # --- memo, results of the run before ----------------------------------------------------------

    def _payloads(self) -> dict[str, Payload]:
        if self._memo is None:
            self._memo = dict(self._situation.started.memo)
        return self._memo

    def memo(self) -> Mapping[str, Any]:
        return {key: self.memo_value(key, Any) for key in self._payloads()}

    def memo_value(self, key: str, type_hint: Any) -> Any:
        return self._situation.conversion.load(self._payloads()[key], type_hint)

    def upsert_memo(self, updates: Mapping[str, Any]) -> None:
        self._situation.check("change the memo")
        dump = self._situation.conversion.dump
        changes = {key: None if value is None else dump(value) for key, value in updates.items()}
        self._situation.ledger.add(ModifyProperties(upserted_memo=changes))
        memo = self._payloads()
        for key, payload in changes.items():
            if payload is None:
                memo.pop(key, None)
            else:
                memo[key] = payload

    def has_last_completion_result(self) -> bool:
        return self._situation.started.last_completion_result is not None

    def last_completion_result(self, type_hint: Any) -> Any | None:
        payload = self._situation.started.last_completion_result
        return None if payload is None else self._situation.conversion.load(payload, type_hint)

    def last_failure(self) -> BaseException | None:
        failure = self._situation.started.last_failure
        return None if failure is None else self._situation.conversion.exception(failure)

    def current_details(self) -> str:
        return self._details

    def set_current_details(self, details: str) -> None:
        self._situation.check("set the current details")
        self._details = details

    # --- other workflows, and the next run --------------------------------------------------------

    async def signal_external(
        self, workflow_id: str, run_id: str | None, signal: str, args: Sequence[Any]
    ) -> None:
        await self._external.signal(workflow_id, run_id, signal, args)

    def continue_as_new(self, continuation: Continuation) -> NoReturn:
        self._situation.check("continue as new")
        raise ContinueAsNewError(continuation)

    # --- handlers -------------------------------------------------------------------------------

    def handler(self, kind: Kind, name: str | None) -> Callable[..., Any] | None:
        return self._handlers.handler(kind, name)

    def set_handler(self, kind: Kind, name: str | None, handler: Handler | None) -> None:
        self._handlers.set_handler(kind, name, handler)

    def all_handlers_finished(self) -> bool:
        return self._handlers.all_finished()

    def update_info(self) -> UpdateInfo | None:
        return update_info.get()


def _duration(ms: int) -> timedelta | None:
    return timedelta(milliseconds=ms) if ms else None
