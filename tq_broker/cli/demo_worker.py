"""One worker process of ``tq-broker demo``: ``python -m tq_broker.cli.demo_worker HOST ...``.

It serves until its standard input ends, which it does when the demo wants it to stop, and also
when the demo is killed. ``tq-broker worker`` is the one for real work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tq_broker.cli import exits
from tq_broker.cli.demo_stage import READY, Scene
from tq_broker.cli.passwords import URL_VARIABLE
from tq_broker.exceptions import TqBrokerError


def main(arguments: Sequence[str]) -> int:
    """Serve as the worker on a host; returns the exit code.

    Args:
        arguments: Host, namespace, task queue and queue type, and perhaps ``--workflow``. The URL
            is in the environment.
    """
    host, namespace, task_queue, queue_type, *options = arguments
    has_workflows = "--workflow" in options
    scene = Scene(os.environ[URL_VARIABLE], namespace, task_queue, queue_type, has_workflows)
    try:
        with scene.client() as client, scene.worker(client, host):
            sys.stdout.buffer.write(READY)
            sys.stdout.flush()
            sys.stdin.read()
    except TqBrokerError as error:
        print(exits.message_of(error), file=sys.stderr)
        return exits.code_of(error)
    return exits.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
