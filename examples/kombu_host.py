"""An existing Kombu program that hosts a tq_broker worker beside its own consumers.

    python examples/kombu_host.py amqp://guest:guest@localhost// default greetings

The program's connection and loop deliver the tasks; the worker runs them.
"""

import sys
from datetime import timedelta

from kombu import Connection, Exchange, Queue
from kombu.mixins import ConsumerMixin

from tq_broker import BlockingClient, Worker, activity


@activity.defn(start_to_close_timeout=timedelta(seconds=30))
def greet(name: str) -> str:
    return f"Hello, {name}!"


class Program(ConsumerMixin):
    def __init__(self, connection, worker, namespace):
        self.connection = connection
        self.worker = worker
        self.news = Queue(
            f"{namespace}.news",
            Exchange(f"{namespace}.news", type="fanout"),
            queue_arguments={"x-queue-type": "classic"},
        )

    def get_consumers(self, Consumer, channel):
        own = Consumer(queues=[self.news], accept=["json"], callbacks=[self.on_news])
        return [own, *self.worker.get_consumers(Consumer, channel)]

    def on_news(self, body, message):
        print("news:", body, flush=True)
        message.ack()


if __name__ == "__main__":
    url, namespace, task_queue = sys.argv[1:]
    client = BlockingClient.connect(url, namespace=namespace)
    worker = Worker(client, task_queue=task_queue, activities=[greet])
    with Connection(url, heartbeat=10) as connection:
        try:
            Program(connection, worker, namespace).run()
        except KeyboardInterrupt:
            worker.stop()
            client.close()
