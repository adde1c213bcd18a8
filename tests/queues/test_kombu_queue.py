"""`kombu_queue` is what this library would declare; see integration/test_interop.py, too."""

from __future__ import annotations

import pytest

from tq_broker import kombu_queue
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import Names
from tq_broker.queues.topology import QueueType, task_queue_arguments


@pytest.mark.parametrize("queue_type", list(QueueType))
def test_name_arguments_and_bindings_are_the_task_queues(queue_type):
    names = Names("shop")

    queue = kombu_queue("mail/eu", namespace="shop", queue_type=queue_type.value)

    assert queue.name == str(names.activity("mail/eu")) == "tq.shop.activity.mail%2Feu"
    assert queue.durable
    assert queue.queue_arguments == task_queue_arguments(names, queue_type)
    bound = {(b.exchange.name, b.routing_key) for b in queue.bindings}
    key = "activity.mail%2Feu"
    assert bound == {("tq.shop.tasks", key), ("tq.shop.due", f"#.{key}")}


@pytest.mark.parametrize(
    ("arguments", "blamed"),
    [
        ({"task_queue": ""}, "task_queue"),
        ({"task_queue": "a\nb"}, "task_queue"),
        ({"task_queue": "a", "namespace": "x" * 41}, "namespace"),
        ({"task_queue": "a", "queue_type": "stream"}, "queue_type"),
    ],
)
def test_bad_names_are_refused(arguments, blamed):
    with pytest.raises(InvalidArgument, match=blamed):
        kombu_queue(**arguments)
