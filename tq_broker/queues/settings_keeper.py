"""The settings keeper: sees to it that the settings log forgets nothing.

RabbitMQ drops the log's oldest records. So whoever follows it for long, which are the workers and
the history services, has a keeper, and the one that is first appends a snapshot when one is due.
What a snapshot is and when it is due `tq_broker.model.playback` says.

Each waits a moment of its own, so that mostly one writes; two at a time are harmless. Who could not
read a record, as an older program cannot read those of a newer one, lets others go first.

Threads: it is told on the broker's reading thread, and wakes up on the clock's; what takes time is
done on the sender's.
"""

from __future__ import annotations

import logging
import threading

from tq_broker.clock import Timer, epoch_ms
from tq_broker.exceptions import PayloadTooLarge, TqBrokerError
from tq_broker.model.names import Kind
from tq_broker.model.settings import BEFORE_ALL, SettingsSnapshot
from tq_broker.model.snapshot import pack
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog

log = logging.getLogger(__name__)

JITTER_S = 2.0
UNSURE_S = 5.0
"""So much longer waits who could not read all records."""
EMPTY_S = 3.0
"""A log that is read again and silent for so long has nothing in it: RabbitMQ's count of a stream,
which is asked as well, may lag behind by a second."""
GIVE_UP_S = 60.0
"""So long a follower waits for somebody who knows what is gone from the log."""
RETRY_S = 5.0
TOO_LARGE_S = 600.0
APPEND_WITHIN_S = 30.0
ASK_WITHIN_S = 5.0


class SettingsKeeper:
    """Writes the snapshots of one follower; between `start` and `stop`, which its owner calls
    before it follows the log, and after.

    Args:
        by: How it signs.
        jitter: From 0 to 1, by chance: when it writes, among others.
    """

    def __init__(self, sender: Sender, settings: SettingsLog, by: str, jitter: float) -> None:
        self._sender = sender
        self._clock = sender.clock
        self._settings = settings
        self._by = by
        self._jitter_s = JITTER_S * jitter
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._due_at = 0.0
        self._not_before = 0.0
        self._cut_at: float | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin to heed what the follower reads."""
        self._settings.on_news = self._on_news

    def stop(self) -> None:
        """Write nothing more. Idempotent."""
        with self._lock:
            self._is_stopped = True
            if self._timer is not None:
                self._timer.cancel()

    def _on_news(self) -> None:
        settings, now = self._settings, self._clock.monotonic()
        if settings.is_whole:
            self._cut_at = None
        elif self._cut_at is None:
            self._cut_at = now
        if settings.is_snapshot_due:
            self._book(now + self._jitter_s + (UNSURE_S if settings.skipped else 0.0))
        elif settings.is_silent_again:
            self._book(now + EMPTY_S + self._jitter_s)
        elif self._cut_at is not None:
            self._book(self._cut_at + GIVE_UP_S + self._jitter_s)

    def _book(self, at: float) -> None:
        """Look at ``at``, if not sooner anyway."""
        with self._lock:
            at = max(at, self._not_before)
            if self._is_stopped or (self._timer is not None and self._due_at <= at):
                return
            if self._timer is not None:
                self._timer.cancel()
            self._due_at = at
            self._timer = self._clock.call_at(at, lambda: self._sender.in_background(self._look))

    def _look(self) -> None:
        with self._lock:
            if self._is_stopped:
                return
            self._timer = None
            self._not_before = self._clock.monotonic() + RETRY_S
        try:
            self._look_for_loss()
            if self._settings.is_snapshot_due:
                self._write()
        except TqBrokerError as error:
            log.warning("settings log not looked after, trying again: %s", error)
        self._on_news()

    def _look_for_loss(self) -> None:
        settings, now = self._settings, self._clock.monotonic()
        if settings.is_silent_again:
            queue = str(self._sender.names.queue(Kind.SETTINGS))
            stats = self._sender.broker.stats(queue, now + ASK_WITHIN_S)
            if stats is not None and not stats.ready and settings.is_silent_again:
                settings.emptied()
            return
        has_waited = self._cut_at is not None and now >= self._cut_at + GIVE_UP_S
        if has_waited and settings.catch_up(now + ASK_WITHIN_S) and not settings.is_whole:
            settings.give_up()

    def _write(self) -> None:
        settings = self._settings
        upto, state, lost_ms = settings.snapshot()
        try:
            packed = pack(state)
        except PayloadTooLarge as error:
            log.error("settings log: %s; old settings will be forgotten", error)
            settings.keeping_fault = f"{error}; old settings will be forgotten"
            self._not_before = self._clock.monotonic() + TOO_LARGE_S
            return
        settings.keeping_fault = ""
        if upto == BEFORE_ALL:
            log.warning("settings log: it was deleted; what was in it is written into the new one")
        record = SettingsSnapshot(
            upto=upto, state=packed, at_ms=epoch_ms(self._clock), by=self._by, lost_ms=lost_ms
        )
        deadline = self._clock.monotonic() + APPEND_WITHIN_S
        self._sender.append(record, deadline, _told)


def _told(error: TqBrokerError | None) -> None:
    if error is None:
        log.info("settings log: a snapshot was written")
    else:
        log.warning("settings log: the snapshot was not written, trying again: %s", error)
