"""The history service: remembers workflows, and says what is to be done next.

Any number of processes may run one for the same namespace and store; they share its shards.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
from typing import TYPE_CHECKING, Any

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.history.lane import Lane
from tq_broker.history.membership import BEAT_S, Membership
from tq_broker.history.options import HistoryOptions
from tq_broker.history.patience import Halted, Patience
from tq_broker.history.retention import Retention
from tq_broker.model.names import Kind
from tq_broker.queues.connection import Connected, Connection
from tq_broker.queues.sender import NAMESPACE
from tq_broker.queues.settings_keeper import SettingsKeeper
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.stores.store import Member, OutcomeUnknown, Store

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

START_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
SETTINGS_WITHIN_S = 5.0


class HistoryService:
    """Runs the shards of a namespace that fall to this process.

    Use it as a context manager, or call `start` and `stop`. It works on threads of its own.

    Args:
        client: Whose connection it uses, or a connection. It is not closed with it.
        store: The database of the connection's namespace. It is not closed with it.
        **options: `HistoryOptions`.

    Raises:
        InvalidArgument: names the argument and its bound.
    """

    def __init__(self, client: Connected | Connection, store: Store, **options: Any) -> None:
        try:
            self.options = HistoryOptions(**options)
        except TypeError as error:
            raise InvalidArgument(f"HistoryService: {error}") from error
        connection = client if isinstance(client, Connection) else client.connection
        self._connection: Connection = connection
        self._clock = connection.clock
        self._store = store
        self.member_id = secrets.token_hex(8)
        self._settings = SettingsLog(connection.broker, connection.names, self._clock)
        self._settings_keeper = SettingsKeeper(
            connection.sender, self._settings, self.options.identity, random.random()
        )
        self._lane = Lane(connection, store, self.options)
        self._membership = Membership(self.member_id)
        self._joined_ms = 0
        self._stopping = threading.Event()
        self._patience = Patience(connection.clock, self._stopping)
        self._beats: threading.Thread | None = None
        self._retention = Retention(store, self.options.retention, connection.clock, self._wait)

    @property
    def identity(self) -> str:
        """How the process signs."""
        return self.options.identity

    @property
    def shards(self) -> tuple[int, ...]:
        """Those that it owns now."""
        return self._lane.held

    @property
    def is_at_rest(self) -> bool:
        """Whether it waits for messages or for its time, and nothing that it has sent is under
        way."""
        return self._lane.is_at_rest

    def start(self) -> None:
        """Connect, join the others and subscribe; blocks until messages can come.

        Raises:
            AccessRefused, BrokerUnavailable, DeadlineExceeded, StoreUnavailable: what stands in
                the way.
        """
        if self._beats is not None or self._stopping.is_set():
            raise InvalidArgument("a history service can be started once")
        deadline = self._clock.monotonic() + START_WITHIN_S
        self._connection.sender.ensure((NAMESPACE,), deadline)
        self._follow_settings(deadline)
        self._joined_ms = epoch_ms(self._clock)
        self._lane.start()
        self._beats = threading.Thread(target=self._beat_on, name="tq-history-beat", daemon=True)
        try:
            self._beat()
            subscriptions = self._lane.subscriptions(deadline)
            self._connection.broker.wait_subscribed(subscriptions, deadline)
        except TqBrokerError:
            self.stop()
            raise
        self._beats.start()

    def _follow_settings(self, deadline: float) -> None:
        """Read the traffic rules, which must be known before the first task goes out."""
        broker = self._connection.broker
        self._settings_keeper.start()
        broker.wait_subscribed([self._settings.follow()], deadline)
        stats = broker.stats(str(self._connection.names.queue(Kind.SETTINGS)), deadline)
        within = self._clock.monotonic() + SETTINGS_WITHIN_S
        # What is so new that RabbitMQ has not counted it yet may reach us a moment later.
        if stats is not None and stats.ready and not self._settings.catch_up(within):
            log.warning("history: settings not read to their end in %g s", SETTINGS_WITHIN_S)
        self._connection.traffic.attach(self._settings)

    def stop(self) -> None:
        """Take nothing more, finish what was begun, let others have the shards. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._beats is not None:
            if self._beats.is_alive():
                self._beats.join(STOP_WITHIN_S)
            self._lane.stop(STOP_WITHIN_S)
            try:
                self._store.leave(self.member_id)
            except TqBrokerError as error:
                log.warning("history: not left properly: %s", error)
        self._connection.traffic.detach(self._settings)
        self._settings_keeper.stop()
        self._settings.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    # --- one of many ------------------------------------------------------------------------------

    def _beat_on(self) -> None:
        """On a thread of its own: a commit that takes long does not make us dead."""
        while not self._stopping.is_set():
            try:
                self._patience.insist(self._beat, OutcomeUnknown)
                self._patience.insist(self._prune, OutcomeUnknown)
            except Halted:
                break
            except Exception:  # supervisor of this thread
                log.exception("history: internal error (please report this)")
            self._wait(BEAT_S)

    def _wait(self, seconds: float) -> bool:
        """Let so much time pass; tells whether to go on."""
        passed = threading.Event()
        timer = self._clock.call_at(self._clock.monotonic() + seconds, passed.set)
        while not passed.wait(0.05) and not self._stopping.is_set():
            continue
        timer.cancel()
        return not self._stopping.is_set()

    def _beat(self) -> None:
        """Say that we live, hear who else does, and act on it."""
        now_s, now_ms = self._clock.monotonic(), epoch_ms(self._clock)
        held = self._lane.held
        me = Member(self.member_id, self.identity, self._joined_ms, now_ms, held)
        members = self._store.beat(me)
        living = self._membership.observe(members, now_s, now_ms)
        self._lane.wish(self._membership.wishes(living, held, now_s))
        for member_id in self._membership.forgotten(now_s):
            self._store.leave(member_id)

    def _prune(self) -> None:
        self._retention.prune(self._lane.held)
