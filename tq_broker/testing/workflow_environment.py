"""An environment to run workflows in: a broker, a history service and a client, for one test::

    async with await WorkflowEnvironment.start_time_skipping() as env:
        async with Worker(env.client, task_queue="t", workflows=[Reminder]):
            await env.client.execute_workflow(Reminder.run, id="r", task_queue="t")

Names and meanings are those of Temporal's Python SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tq_broker.client import Client, Interceptor, OutboundInterceptor
from tq_broker.client.core import ClientCore
from tq_broker.client.waiting import Asked, to_seconds
from tq_broker.client.workflow_core import WorkflowCore
from tq_broker.clock import Clock, SystemClock
from tq_broker.common import DURATION_MAX
from tq_broker.converter import DEFAULT, DataConverter
from tq_broker.model import requests
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.skipping_clock import SkippingClock
from tq_broker.testing.time_skipper import TimeSkipper

if TYPE_CHECKING:
    from typing_extensions import Self


class WorkflowEnvironment:
    """Made by `start_local`, `start_time_skipping` or `from_client`; used as ``async with``.

    Attributes:
        client: Connected; workers are made with it, too.
    """

    def __init__(
        self,
        client: Client,
        *,
        system: EmbeddedSystem | None = None,
        skipper: TimeSkipper | None = None,
    ) -> None:
        """For the class's own use."""
        self.client = client
        self._system = system
        self._skipper = skipper

    @classmethod
    async def start_local(
        cls,
        *,
        broker: str | None = None,
        store: str | None = None,
        namespace: str = "default",
        data_converter: DataConverter = DEFAULT,
        interceptors: Sequence[Interceptor] = (),
        identity: str = "test",
    ) -> Self:
        """An environment with the machine's clock.

        Args:
            broker: URL of a RabbitMQ that runs; ``None``: a broker inside this process.
            store: URL of a database for histories; ``None``: they are kept in memory.
            interceptors: Of its client, and so of its workers.

        Raises:
            AccessRefused, BrokerUnavailable, StoreUnavailable: why it cannot be connected.
        """
        system = EmbeddedSystem(
            SystemClock(),
            broker,
            store,
            namespace=namespace,
            data_converter=data_converter,
            identity=identity,
        )
        client = Client(system.core, interceptors)
        await asyncio.to_thread(system.start)
        return cls(client, system=system)

    @classmethod
    async def start_time_skipping(
        cls,
        *,
        namespace: str = "default",
        data_converter: DataConverter = DEFAULT,
        interceptors: Sequence[Interceptor] = (),
        identity: str = "test",
    ) -> Self:
        """An environment, all in this process, whose time jumps to the next timer.

        It does so while somebody waits for the result of a workflow, or in `sleep`, and nothing
        is under way: no message, no workflow task, no activity. Else it goes with the machine's.
        """
        clock = SkippingClock()
        system = EmbeddedSystem(
            clock,
            namespace=namespace,
            data_converter=data_converter,
            identity=identity,
            retention=DURATION_MAX,  # what ended before a jump is still to be asked about
        )
        skipper = TimeSkipper(clock, system.next_due)
        client = _SkippingClient(system.core, skipper, interceptors)
        await asyncio.to_thread(system.start)
        skipper.start()
        return cls(client, system=system, skipper=skipper)

    @classmethod
    def from_client(cls, client: Client) -> Self:
        """An environment around a client of one's own, which is not closed with it."""
        return cls(client)

    @property
    def supports_time_skipping(self) -> bool:
        """Whether time can be skipped here."""
        return self._skipper is not None

    async def get_current_time(self) -> datetime:
        """The time of this environment, in UTC."""
        return datetime.fromtimestamp(self._clock.wall(), timezone.utc)

    async def sleep(self, duration: timedelta | float) -> None:
        """Let ``duration`` (seconds if a number) pass; where time is skipped, in no time."""
        seconds = to_seconds(duration)
        assert seconds is not None, "a duration was given"
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        until = self._clock.monotonic() + seconds

        def wake() -> None:
            loop.call_soon_threadsafe(over.set)

        timer = self._clock.call_at(until, wake)
        try:
            if self._skipper is None:
                await over.wait()
            else:
                with self._skipper.sleeping(until):
                    await over.wait()
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def auto_time_skipping_disabled(self) -> Iterator[None]:
        """A block in which waiting for a result skips no time."""
        if self._skipper is None:
            yield
        else:
            with self._skipper.disabled():
                yield

    async def shutdown(self) -> None:
        """End what was started here. Workers are to be stopped before."""
        if self._skipper is not None:
            await asyncio.to_thread(self._skipper.close)
        if self._system is not None:
            await asyncio.to_thread(self._system.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    @property
    def _clock(self) -> Clock:
        return self.client.connection.clock


class _SkippingClient(Client):
    """A client whose waits for results let time be skipped."""

    def __init__(
        self, core: ClientCore, skipper: TimeSkipper, interceptors: Sequence[Interceptor]
    ) -> None:
        super().__init__(core, interceptors)
        self._skipper = skipper

    @cached_property
    def workflows(self) -> WorkflowCore:
        return _SkippingCore(self.core, self._skipper, self.outbound)


class _SkippingCore(WorkflowCore):
    def __init__(
        self, core: ClientCore, skipper: TimeSkipper, outbound: OutboundInterceptor | None
    ) -> None:
        super().__init__(core, outbound)
        self._skipper = skipper

    def execute(self, request: requests.StartWorkflow, hint: Any) -> Asked[Any]:
        return self._skipped(super().execute(request, hint))

    def result(
        self, workflow_id: str, run_id: str | None, hint: Any, *, follow: bool
    ) -> Asked[Any]:
        return self._skipped(super().result(workflow_id, run_id, hint, follow=follow))

    def _skipped(self, asked: Asked[Any]) -> Asked[Any]:
        def drop() -> None:
            self._skipper.end_wait()
            asked.drop()

        self._skipper.begin_wait()
        return dataclasses.replace(asked, drop=drop)
