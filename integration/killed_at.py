"""A worker that kills itself in a given instant, the first time that it comes to it.

``python -m integration.killed_at INSTANT URL NAMESPACE TASK_QUEUE SLOTS FILE``
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from benchmarks import throttle_worker
from tq_broker.model.passes import What
from tq_broker.worker.handler import Handler
from tq_broker.worker.roster import Roster
from tq_broker.worker.table import Held
from tq_broker.worker.usher import Usher

SENT_S = 0.3
"""What was said before has reached RabbitMQ by then."""

Method = Callable[..., Any]


def die(*_: object, **__: object) -> NoReturn:
    """As ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def die_later(*_: object, **__: object) -> NoReturn:
    """The same, when what was said before has reached RabbitMQ."""
    time.sleep(SENT_S)
    die()


def die_after(method: Method) -> Method:
    """``method``, and the end right after it."""

    def last(*args: Any, **options: Any) -> None:
        method(*args, **options)
        die()

    return last


def die_of_an_end(tell: Method) -> Method:
    """``tell``, but the end of a pass is not told any more."""

    def telling(self: Roster, mark: str, what: What, done: Callable[[], None]) -> None:
        if what is What.ENDED:
            die()
        tell(self, mark, what, done)

    return telling


INSTANTS: dict[str, tuple[type, str, Method]] = {
    "ended and not told": (Roster, "tell", die_of_an_end(Roster.tell)),
    "told and not reported": (Handler, "_complete", die_later),
    "reported and not let go": (Held, "let_go", die_later),
    "covered": (Roster, "write", die_after(Roster.write)),
    "let in and not sent on": (Usher, "_send_on", die),
    "let in, perhaps": (Usher, "_admit", die_after(Usher._admit)),
}


def main(instant: str, *where: str) -> None:
    """Serve until then."""
    owner, name, method = INSTANTS[instant]
    setattr(owner, name, method)
    throttle_worker.main(*where)


if __name__ == "__main__":
    main(*sys.argv[1:])
