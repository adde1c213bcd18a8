"""Applications of hosts that fork: a Celery task and a WSGI application, with one client for both.

The client is made and used when this is imported: in the process that is forked, if the host loads
its application first. Broker, namespace and ledger are named by the environment.

``python -m integration.forking_hosts KEY...`` sends the Celery task once for each key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from celery import Celery

from integration.journey_activities import ledger, tell, work_in_thread
from integration.ledger import SUCCESS
from tq_broker.client import BlockingClient
from tq_broker.common import RetryPolicy

NAMESPACE = os.environ["TQ_BROKER_NAMESPACE"]
OUTCOME_WITHIN_S = 30.0
WORK_S = 0.05
"""So that one process alone cannot have it all."""

client = BlockingClient.connect(os.environ["TQ_BROKER_URL"], namespace=NAMESPACE)
# From now on it has connections, threads and a reply queue, none of which are a child's.
client.execute_activity(tell, task_queue="q")
made_by = os.getpid()

celery = Celery("forking_hosts", broker=os.environ["TQ_BROKER_URL"])
celery.conf.update(
    task_default_queue=f"celery-{NAMESPACE}",
    task_ignore_result=True,
    worker_enable_remote_control=False,
)


def ask(key: str) -> None:
    """Start an activity and wait for its outcome, with all of it in the ledger.

    The note of ``intent`` is the process that made the client.
    """
    ledger().write("intent", key, note=str(made_by))
    handle = client.start_activity(
        work_in_thread,
        args=(key, WORK_S),
        task_queue="q",
        retry_policy=RetryPolicy(maximum_attempts=1),
    )
    ledger().write("accepted", key)
    outcome = handle.result(OUTCOME_WITHIN_S)
    ledger().write("done", key, note=SUCCESS if outcome == key else f"not mine: {outcome}")


ask_in_celery = celery.task(name="ask")(ask)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Ask with the path as the key."""
    key = environ["PATH_INFO"].removeprefix("/")
    ask(key)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [key.encode()]


if __name__ == "__main__":
    for each in sys.argv[1:]:
        ask_in_celery.delay(each)
