"""An embedded system: client, history service and, if not elsewhere, broker and store, in this
process and on one clock.

Its rest is what time-skipping rests on. Every part keeps a message unacknowledged until all that
follows from it is with the broker, and history tells the store when it wants to be woken before it
acknowledges anything. So when no message is held, nothing is due and history rests, nothing happens
before the time that the store names.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from typing import TYPE_CHECKING, Any

from tq_broker.client.core import ClientCore
from tq_broker.clock import Clock, epoch_ms
from tq_broker.converter import DEFAULT, DataConverter
from tq_broker.exceptions import Unavailable
from tq_broker.history.service import HistoryService
from tq_broker.history.state import Execution
from tq_broker.model.names import Kind, Names
from tq_broker.model.requests import SHARDS
from tq_broker.queues.connect import broker_for
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import forget, server_for
from tq_broker.stores.opening import open_store
from tq_broker.stores.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

FAR_MS = 1 << 62
RUNS_MAX = 1_000
MEMORY = "memory://"


class EmbeddedSystem:
    """Everything but the workers.

    Attributes:
        core: What clients are made of; it is closed with the system.
        store: Set by `start`; closed with the system as well.
    """

    store: Store

    def __init__(
        self,
        clock: Clock,
        broker: str | None = None,
        store: str | None = None,
        *,
        namespace: str = "default",
        data_converter: DataConverter = DEFAULT,
        identity: str = "embedded",
        **history: Any,
    ) -> None:
        """Nothing is started yet.

        Args:
            broker: URL; ``None`` is a new broker inside this process.
            store: URL; ``None`` is a new store in memory.
            **history: Options of the `HistoryService`.
        """
        self._clock = clock
        self._is_own_broker = broker is None
        self._url = broker or f"{MEMORY}embedded-{secrets.token_hex(8)}"
        self._store_url = store or MEMORY
        self._names = Names(namespace)
        self._converter = data_converter
        self._identity = identity
        self._options = history
        self.core = ClientCore(self._connection())

    def _connection(self) -> Connection:
        broker = broker_for(self._url, self._clock)
        return Connection(broker, self._names, self._clock, self._converter, self._identity)

    def start(self) -> None:
        """Connect, and return when history serves; blocks.

        Raises:
            AccessRefused, BrokerUnavailable, StoreUnavailable, InvalidArgument: what stands in
                the way. Nothing stays then.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self._forget)
            undo.callback(lambda: self.core.close(self.core.deadline()))
            self.core.connect(self.core.deadline())
            self.store = open_store(self._store_url, self._names.namespace, migrate=True)
            undo.callback(self.store.close)
            connection = self._connection()
            undo.callback(lambda: connection.broker.close(self.core.deadline()))
            undo.callback(connection.sender.close)
            self._history = HistoryService(connection, self.store, **self._options)
            undo.callback(self._history.stop)
            self._history.start()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Stop, in the reverse order; blocks."""
        with contextlib.suppress(Unavailable):  # a broker that is gone needs no farewell
            self._undo.close()

    def _forget(self) -> None:
        if self._is_own_broker:
            forget(self._url)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def next_due(self) -> float | None:
        """The monotonic time of what comes next, infinity if nothing will; ``None`` while
        something is under way. Only with an embedded broker."""
        server = server_for(self._url)
        with server.changed:
            if any(not self._names.owns(queue, Kind.WILL) for queue in server.vhost.held()):
                return None
            message_due = server.vhost.message_due()
        if not self._history.is_at_rest:
            return None
        now_ms = epoch_ms(self._clock)
        due = math.inf if message_due is None else message_due
        due_ms = self._due_ms()
        if due_ms is None:
            return due
        if due_ms <= now_ms:
            return None
        return min(due, self._clock.monotonic() + (due_ms - now_ms) / 1000)

    def _due_ms(self) -> int | None:
        """The next time that a run waits for. No queue in memory loses anything: without the looks
        at them, which would go on for ever."""
        first: int | None = None
        for wakeup_ms, _, run_id in self.store.due(range(SHARDS), FAR_MS, RUNS_MAX):
            if first is not None and first <= wakeup_ms:
                break
            for row in self.store.runs([run_id]):
                next_ms = Execution.load(row.state).next_ms(looks=False)
                first = min(filter(None, (first, next_ms)), default=None)
        return first
