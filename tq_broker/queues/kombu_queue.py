"""A task queue as a `kombu.Queue`, for Kombu programs that consume or declare it themselves."""

from __future__ import annotations

from kombu import entity

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import Exchange, Names, check_task_queue
from tq_broker.queues import topology
from tq_broker.queues.topology import QueueType


def kombu_queue(
    task_queue: str, *, namespace: str = "default", queue_type: str = "quorum"
) -> entity.Queue:
    """The exact queue behind an activity task queue, with its arguments and bindings.

    Declaring it gives what this library would declare; ``no_declare`` is not set. The exchanges
    of the namespace must exist: any client or worker of this library declares them.

    Args:
        queue_type: ``quorum`` or ``classic``, as the task queue's workers have it.
    """
    names = Names(namespace)
    try:
        kind = QueueType(queue_type)
    except ValueError:
        raise InvalidArgument("queue_type must be 'quorum' or 'classic'") from None
    queue = names.activity(check_task_queue(task_queue))
    exchange = entity.Exchange(names.exchange(Exchange.TASKS), type="direct", durable=True)
    due = entity.Exchange(names.exchange(Exchange.DUE), type="topic", no_declare=True)
    return entity.Queue(
        str(queue),
        exchange=exchange,
        routing_key=queue.key,
        bindings=[
            entity.binding(exchange, routing_key=queue.key),
            entity.binding(due, routing_key=f"#.{queue.key}"),
        ],
        durable=True,
        queue_arguments=topology.task_queue_arguments(names, kind),
    )
