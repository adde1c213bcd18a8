"""Journey: queues are reclaimed all the time while others publish to them, and no task is lost.

Publishers send numbered tasks in bursts with pauses, so that queues fall idle again and again;
reclaimers with a tiny grace take the queues away, several of them per second, and one of them is
killed wherever it happens to be; a consumer comes and goes. In the end every task whose publish
was confirmed must have been seen.

The actors are processes: this file, run as a program with the actor's name and its arguments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import TqBrokerError, Unavailable
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Names
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions
from tq_broker.queues.connect import broker_for
from tq_broker.queues.reclaim import Reclaimer
from tq_broker.queues.sender import Sender
from tq_broker.queues.topology import QueueType
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

RUN_S = float(os.environ.get("TQ_BROKER_RACE_S", "20"))
GRACE_S = 0.05
QUEUES = {
    "quorum-a": QueueType.QUORUM,
    "quorum-b": QueueType.QUORUM,
    "classic-c": QueueType.CLASSIC,
    "classic-d": QueueType.CLASSIC,
}
PUBLISHERS, THREADS = 2, 2
ROOT = Path(__file__).parent.parent

clock = SystemClock()


def soon(seconds: float = 30.0) -> float:
    return clock.monotonic() + seconds


class Actor:
    """What every actor has: a broker of its own, and a file that it writes lines to."""

    def __init__(self, url: str, namespace: str, ledger: str) -> None:
        self.names = Names(namespace)
        self.broker: Broker = broker_for(url, clock)
        self.senders = {
            kind: Sender(self.broker, self.names, clock, identity="race", queue_type=kind)
            for kind in QueueType
        }
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, kind: str, *words: object) -> None:
        # One write per line: lines of several threads do not mix, and a kill tears none.
        os.write(self._ledger, (" ".join([kind, *map(str, words)]) + "\n").encode())

    def sender(self, queue: str) -> Sender:
        return self.senders[QUEUES[queue]]


# --- the actors ---------------------------------------------------------------------------------


def publish(actor: Actor, seed: str) -> None:
    threads = [
        threading.Thread(target=_publish, args=(actor, f"{seed}.{index}"))
        for index in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    actor.write("published")


def _publish(actor: Actor, seed: str) -> None:
    rng = random.Random(seed)
    exchange = actor.names.exchange(Exchange.TASKS)
    number, end = 0, soon(RUN_S)
    while clock.monotonic() < end:
        name = rng.choice(list(QUEUES))
        queue = actor.names.activity(name)
        ended = threading.Semaphore(0)
        size = rng.randint(1, 20)
        for _ in range(size):
            number += 1
            task = f"{seed}/{number}"
            done = partial(_ended, actor, ended, task)
            message = Message(body=task.encode(), message_id=task)
            publication = Publication(exchange, queue.key, message)
            actor.sender(name).send(publication, (queue,), soon(15), done)
            if rng.random() < 0.2:
                clock.sleep(rng.uniform(0, 0.02))
        for _ in range(size):
            assert ended.acquire(timeout=30), "a publish has no end"
        # Around the length of one round of a reclaimer, so that both meet everywhere.
        clock.sleep(rng.uniform(0, 0.4))


def _ended(
    actor: Actor, ended: threading.Semaphore, task: str, error: TqBrokerError | None
) -> None:
    actor.write("confirmed" if error is None else "failed", task, repr(error))
    ended.release()


def reclaim(actor: Actor, seed: str) -> None:
    rng = random.Random(seed)
    reclaimer = Reclaimer(actor.broker, actor.sender("quorum-a"), actor.names, clock)
    while True:
        names = rng.sample(list(QUEUES), rng.randint(1, len(QUEUES)))
        try:
            for name in reclaimer.reclaim(names, grace_s=GRACE_S):
                actor.write("reclaimed", name)
        except Unavailable as error:
            actor.write("trouble", repr(error))


def reclaim_and_die(actor: Actor, seed: str) -> None:
    """Forks reclaimers and kills them, so that their start takes no time."""
    rng = random.Random(seed)
    while True:
        child = os.fork()
        if not child:
            reclaim(actor, str(rng.random()))
        clock.sleep(rng.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        actor.write("killed")


def consume(actor: Actor, seed: str) -> None:
    rng = random.Random(seed)

    def on_deliveries(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            _take(actor, delivery)

    while True:
        name = rng.choice(list(QUEUES))
        queue = actor.names.activity(name)
        options = SubscribeOptions(prefetch=10, plan=actor.sender(name).plan(queue))
        subscription = actor.broker.subscribe(str(queue), on_deliveries, options)
        clock.sleep(rng.uniform(0.02, 0.2))
        subscription.cancel(soon())
        clock.sleep(rng.uniform(0, 0.1))


def _take(actor: Actor, delivery: Delivery) -> None:
    actor.write("seen", delivery.message.message_id, delivery.redelivered)
    delivery.ack()


ACTORS: dict[str, Callable[[Actor, str], None]] = {
    actor.__name__: actor for actor in (publish, reclaim, reclaim_and_die, consume)
}


# --- the journey ----------------------------------------------------------------------------------


@contextmanager
def running(
    role: str, seed: str, where: Sequence[str], log: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, role, seed, *where],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=log,
        text=True,
        start_new_session=True,  # So that a killer goes together with its child.
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # All have ended by themselves.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_no_confirmed_task_is_lost_while_queues_are_reclaimed(
    broker_url: str, namespace: str, tmp_path: Path
) -> None:
    seed = os.environ.get("TQ_BROKER_RACE_SEED") or str(random.SystemRandom().randrange(10**6))
    ledger = tmp_path / "ledger"
    where = [broker_url, namespace, str(ledger)]
    errors = tmp_path / "errors"
    with errors.open("w") as log:
        with ExitStack() as others:
            for index, role in enumerate(["reclaim", "reclaim_and_die", "consume"]):
                others.enter_context(running(role, f"{seed}{index}", where, log))
            with ExitStack() as publishers:
                started = [
                    publishers.enter_context(running("publish", f"{seed}p{index}", where, log))
                    for index in range(PUBLISHERS)
                ]
                for publisher in started:
                    assert publisher.wait(RUN_S + 60) == 0, errors.read_text()
            # The queues fall idle now: what was bound again too late would go here.
            clock.sleep(1.0)
        told = Counter(line.split()[0] for line in ledger.read_text().splitlines())
        waited_out = drain(Actor(*where))

    lines = [line.split() for line in ledger.read_text().splitlines()]
    confirmed = {words[1] for words in lines if words[0] == "confirmed"}
    seen = Counter(words[1] for words in lines if words[0] == "seen")
    again = sum(words[0] == "seen" and words[2] == "True" for words in lines)
    print(json.dumps({**told, "drained": waited_out, "redelivered": again, "seed": seed}))
    assert told["published"] == PUBLISHERS, errors.read_text()
    assert not confirmed - seen.keys(), f"seed {seed}: lost: {sorted(confirmed - seen.keys())[:20]}"
    # The race has taken place.
    assert told["reclaimed"] >= RUN_S, told
    assert told["killed"] >= RUN_S, told
    assert len(confirmed) >= 10 * RUN_S, told
    # A publisher waits for a reclaimer; it does not fail because of one.
    assert not told["failed"], [words for words in lines if words[0] == "failed"][:5]


def drain(actor: Actor) -> int:
    """Take all that is left; returns how many."""
    taken = 0
    for name in QUEUES:
        queue = actor.names.activity(name)
        # A queue that a killed reclaimer has held goes back to it a moment later.
        for _ in range(3):
            while (delivery := actor.broker.get(str(queue), soon())) is not None:
                _take(actor, delivery)
                taken += 1
            clock.sleep(0.3)
    actor.broker.close(soon())
    return taken


@pytest.mark.parametrize("queue_type", list(QueueType))
def test_the_queue_of_a_reclaimer_that_was_killed_in_between_is_used_again(
    broker_url: str, namespace: str, queue_type: QueueType
) -> None:
    # Given a queue, and a reclaimer that is gone after it has unbound the queue
    names = Names(namespace)
    queue = names.activity("files")
    publisher, killed = (broker_for(broker_url, clock) for _ in range(2))
    sender = Sender(publisher, names, clock, identity="race", queue_type=queue_type)
    sender.ensure((queue,), soon())
    other = Sender(killed, names, clock, identity="race", queue_type=queue_type)
    reclaimer = Reclaimer(killed, other, names, clock)
    closing = threading.Timer(1.0, lambda: killed.close(soon()))
    closing.start()
    with pytest.raises(Unavailable):
        reclaimer.reclaim(["files"], grace_s=3)
    closing.join()
    # When somebody publishes, who knows the queue from before
    ended: list[TqBrokerError | None] = []
    done = threading.Event()
    message = Message(body=b"task", message_id="1")
    publication = Publication(names.exchange(Exchange.TASKS), queue.key, message)
    sender.send(publication, (queue,), soon(10), lambda e: (ended.append(e), done.set())[0])
    assert done.wait(15)
    # Then the queue has it
    assert ended == [None]
    delivery = publisher.get(str(queue), soon())
    assert delivery is not None
    assert delivery.message.body == b"task"
    delivery.ack()
    publisher.close(soon())


class MeanwhileClock(SystemClock):
    """What happens while the reclaimer waits is what a test puts in."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self._meanwhile()


@pytest.mark.parametrize("queue_type", list(QueueType))
def test_a_reclaimer_that_lost_its_connection_and_lock_removes_nothing(
    broker: LocalRabbitMQ, namespace: str, queue_type: QueueType
) -> None:
    # Given a reclaimer whose connection breaks while it holds the lock of a queue
    names = Names(namespace)
    queue = names.activity("files")
    ours, others = (broker_for(broker.url, clock) for _ in range(2))
    sender = Sender(ours, names, clock, identity="race", queue_type=queue_type)
    sender.ensure((queue,), soon())

    def meanwhile() -> None:
        broker.ctl("close_all_connections", "for a test")
        # When somebody else takes the queue into use, and it is empty by chance
        sender = Sender(others, names, clock, identity="race", queue_type=queue_type)
        sender.ensure((queue,), soon())

    # Then the queue stays
    assert Reclaimer(ours, sender, names, MeanwhileClock(meanwhile)).reclaim(["files"]) == []
    assert others.stats(str(queue), soon()) is not None
    for one in (ours, others):
        one.close(soon())


if __name__ == "__main__":
    ACTORS[sys.argv[1]](Actor(*sys.argv[3:]), sys.argv[2])
