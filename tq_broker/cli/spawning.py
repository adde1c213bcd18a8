"""Worker processes, started for a supervisor: this program again, in sessions of their own.

In a session of its own a process does not get the terminal's Ctrl-C twice, from the terminal and
from its supervisor. It holds the read end of a pipe that ends with the supervisor, so it does
not go on alone when that is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tq_broker.cli.output import say
from tq_broker.cli.passwords import without_password
from tq_broker.cli.session import Session
from tq_broker.cli.signals import STOPPING, Events
from tq_broker.cli.sources import Sources
from tq_broker.cli.supervisor import Supervisor
from tq_broker.clock import SystemClock


def supervise(session: Session, count: int, *, reload: bool) -> int:
    """Run ``count`` worker processes with this command's arguments; returns the exit code."""
    guard, held = os.pipe()
    events = Events()
    events.listen((*STOPPING, signal.SIGHUP))
    try:
        supervisor = Supervisor(
            lambda index: start_process(session.arguments, index, guard),
            count,
            SystemClock(),
            events,
            say=say,
            changed=Sources(Path.cwd()).changed if reload else None,
        )
        return supervisor.run()
    finally:
        events.unlisten()
        os.close(held)
        os.close(guard)


def start_process(arguments: Sequence[str], index: int, guard: int) -> subprocess.Popen[bytes]:
    """Start the worker process with number ``index``."""
    kept, hidden = without_password(arguments)
    own = ["--process-index", str(index), "--guard-fd", str(guard)]
    return subprocess.Popen(
        [sys.executable, "-m", "tq_broker", *kept, *own],
        env=os.environ | hidden,
        pass_fds=(guard,),
        start_new_session=True,
    )
