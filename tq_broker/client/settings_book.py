"""The settings log, as an operator's commands read and write it. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from tq_broker.client.core import ClientCore
from tq_broker.exceptions import TqBrokerError
from tq_broker.model.names import Kind
from tq_broker.model.settings import Record
from tq_broker.queues.settings_log import SettingsLog


@contextmanager
def followed(core: ClientCore, deadline: float | None = None) -> Iterator[SettingsLog]:
    """The log, read as far as it goes now and followed inside the block; an empty one where there
    is none, because a look declares nothing. ``deadline``: that of the client, if ``None``."""
    deadline = core.deadline() if deadline is None else deadline
    log = SettingsLog(core.broker, core.names, core.clock)
    if core.broker.stats(str(core.names.queue(Kind.SETTINGS)), deadline) is None:
        yield log
        return
    core.broker.wait_subscribed([log.follow()], deadline)
    try:
        log.catch_up(deadline)
        yield log
    finally:
        log.stop()


def append(core: ClientCore, record: Record, deadline: float | None = None) -> None:
    """Write ``record``; returns when the broker has it. Raises `Unavailable`."""
    kept: Future[None] = Future()

    def done(error: TqBrokerError | None) -> None:
        if error is None:
            kept.set_result(None)
        else:
            kept.set_exception(error)

    core.sender.append(record, core.deadline() if deadline is None else deadline, done)
    kept.result()
