"""A plain pika program that starts an activity and reads its outcome. It does not import
tq_broker.

    python examples/pika_client.py amqp://guest:guest@localhost/%2F default shouting shout hello

It prints the result as JSON, or the failure and exits with 1. The messages are described in
docs/protocol.rst. The task queue must exist: a worker that serves it declares it. If it does not,
the mandatory publish is returned, and this program says so.
"""

import json
import sys
import time
import uuid

import pika


def declare_reply_queue(channel, namespace):
    """A queue of our own for outcomes; RabbitMQ removes it ten minutes after we are gone."""
    name = f"tq.{namespace}.reply.pika-{uuid.uuid4().hex}"
    channel.queue_declare(
        name, durable=True, arguments={"x-queue-type": "classic", "x-expires": 600_000}
    )
    channel.queue_bind(name, f"tq.{namespace}.replies", routing_key=name)
    return name


def start_activity(channel, namespace, task_queue, activity_type, args, reply_to):
    """Publish one activity task; returns when RabbitMQ has confirmed it."""
    activity_id = uuid.uuid4().hex
    channel.basic_publish(
        exchange=f"tq.{namespace}.tasks",
        routing_key=f"activity.{task_queue}",
        body=json.dumps({"args": args}).encode(),
        properties=pika.BasicProperties(
            type="activity-task",
            message_id=activity_id,
            correlation_id=activity_id,
            reply_to=reply_to,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            headers={
                "tq-protocol": 1,
                "tq-activity-type": activity_type,
                "tq-scheduled-ms": int(time.time() * 1000),
                "tq-start-to-close-ms": 30_000,
            },
        ),
        mandatory=True,
    )
    return activity_id


def wait_for_outcome(channel, reply_to, activity_id, timeout_s=60):
    """The status and body of the outcome."""
    for method, properties, body in channel.consume(reply_to, inactivity_timeout=timeout_s):
        if method is None:
            raise SystemExit(f"no outcome within {timeout_s} s")
        channel.basic_ack(method.delivery_tag)
        status = properties.headers["tq-status"]
        if properties.correlation_id == activity_id and status != "started":
            return status, json.loads(body)
    raise SystemExit("the consumer was cancelled")


def main():
    url, namespace, task_queue, activity_type, *args = sys.argv[1:]
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        reply_to = declare_reply_queue(channel, namespace)
        try:
            activity_id = start_activity(
                channel, namespace, task_queue, activity_type, args, reply_to
            )
        except pika.exceptions.UnroutableError:
            raise SystemExit(f"task queue {task_queue!r} does not exist yet") from None
        status, body = wait_for_outcome(channel, reply_to, activity_id)
        print(json.dumps(body.get("result", body)))
        if status != "completed":
            raise SystemExit(1)


if __name__ == "__main__":
    main()
