"""Sending until it is taken: over broken connections and blocked brokers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError, Unavailable
from tq_broker.queues.sender import Done, NoRoute

log = logging.getLogger(__name__)

SEND_WITHIN_S = 30.0
INSIST_EVERY_S = 1.0

Then = Callable[[], None]


class Insistence:
    """Insists until `close`. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._closed = False

    def close(self) -> None:
        """Insist no more."""
        self._closed = True

    def deadline(self) -> float:
        """The deadline of one sending that begins now."""
        return self._clock.monotonic() + SEND_WITHIN_S

    def insist(
        self,
        send: Callable[[Done], None],
        done: Then,
        refused: Callable[[TqBrokerError], None],
        *,
        gone_is_fine: bool = True,
    ) -> None:
        """Send until it is taken; ``refused`` gets an error that no repetition would change.

        Args:
            gone_is_fine: Nobody needs it if it cannot be routed: that counts as taken.
        """

        self._send(_Insisted(send, done, refused, gone_is_fine))

    def _send(self, what: _Insisted) -> None:
        what.send(lambda error: self._ended(what, error))

    def _ended(self, what: _Insisted, error: TqBrokerError | None) -> None:
        if error is None or (what.gone_is_fine and isinstance(error, NoRoute)):
            what.done()
        elif not isinstance(error, Unavailable):
            what.refused(error)
        elif not self._closed:
            log.warning("not sent, trying again: %s", error)
            again_at = self._clock.monotonic() + INSIST_EVERY_S
            self._clock.call_at(again_at, lambda: self._send(what))


@dataclass(frozen=True, slots=True)
class _Insisted:
    """What is sent. A value, rather than a function that names itself: that would be a cycle, and
    keep each message until the garbage collector comes."""

    send: Callable[[Done], None]
    done: Then
    refused: Callable[[TqBrokerError], None]
    gone_is_fine: bool
