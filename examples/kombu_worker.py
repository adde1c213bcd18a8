"""A plain Kombu program that serves an activity task queue. It does not import tq_broker.

    python examples/kombu_worker.py amqp://guest:guest@localhost// default shouting

It serves the activity type ``shout`` of one task queue and answers on the reply queue that each
task names. The messages are described in docs/protocol.rst. Kombu waits for each confirmation;
the task is acknowledged only after its outcome is confirmed, so nothing is lost when this program
is killed.
"""

import sys
import time

from kombu import Connection, Exchange, Queue
from kombu.mixins import ConsumerProducerMixin


class ShoutWorker(ConsumerProducerMixin):
    def __init__(self, connection, namespace, task_queue):
        self.connection = connection
        prefix = f"tq.{namespace}"
        self.replies = Exchange(f"{prefix}.replies", type="direct", no_declare=True)
        # Declared by whoever starts the first activity of this task queue, or by any worker of
        # tq_broker; ``tq_broker.kombu_queue`` gives the arguments to declare it oneself.
        self.queue = Queue(f"{prefix}.activity.{task_queue}", no_declare=True)

    def get_consumers(self, Consumer, channel):
        return [
            Consumer(
                queues=[self.queue],
                accept=["json"],
                on_message=self.on_task,
                prefetch_count=10,
            )
        ]

    def on_task(self, message):
        started_ms = int(time.time() * 1000)
        status, body = self.run_activity(message)
        if message.properties.get("reply_to"):
            self.producer.publish(
                body,
                serializer="json",
                exchange=self.replies,
                routing_key=message.properties["reply_to"],
                declare=[],
                type="activity-outcome",
                correlation_id=message.properties["correlation_id"],
                delivery_mode=2,
                headers={
                    "tq-protocol": 1,
                    "tq-status": status,
                    "tq-activity-type": message.headers["tq-activity-type"],
                    "tq-attempt": message.headers.get("tq-attempt", 1),
                    "tq-started-ms": started_ms,
                    "tq-finished-ms": int(time.time() * 1000),
                },
            )
        message.ack()

    def run_activity(self, message):
        """Return the outcome's status and body."""
        if message.headers.get("tq-activity-type") != "shout":
            return "failed", {
                "failure": {
                    "kind": "application",
                    "type": "NotFoundError",
                    "message": "this worker only has the activity shout",
                }
            }
        (text,) = message.payload["args"]
        return "completed", {"result": text.upper() + "!"}


if __name__ == "__main__":
    url, namespace, task_queue = sys.argv[1:]
    with Connection(url, heartbeat=10, transport_options={"confirm_publish": True}) as connection:
        ShoutWorker(connection, namespace, task_queue).run()
