from __future__ import annotations

from tests.worker.worlds import QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.model.names import Kind
from tq_broker.model.settings import TaskQueueReclaimed


@activity.defn(name="noop")
def noop() -> None:
    """Nothing."""


def test_one_worker_of_a_task_queue_deals_and_the_next_one_after_it(world: World) -> None:
    workers = [world.worker(noop) for _ in range(3)]
    world.run("noop", fairness_key="a")

    def dealing() -> list[int]:
        return [n for n, one in enumerate(workers) if one.info().dealing == {"q": 0}]

    world.eventually(lambda: len(dealing()) == 1)
    (first,) = dealing()
    workers[first].stop()
    world.eventually(lambda: len(dealing()) == 1)
    assert dealing() != [first]
    world.run("noop", fairness_key="a")


def test_a_dealer_that_came_while_its_queues_were_removed_says_so(world: World) -> None:
    worker = world.worker(noop)
    world.run("noop", fairness_key="a")
    log = worker._settings
    world.client.connection.sender.append(
        TaskQueueReclaimed("q", 1, fair=True), world.soon(), lambda error: None
    )
    world.eventually(lambda: not log.fair)
    world.eventually(lambda: bool(log.fair))
    assert world.run("noop", fairness_key="a") is None


def test_other_task_queues_are_not_dealt(world: World) -> None:
    world.worker(noop, task_queues=["q", "r"])
    world.run("noop", fairness_key="a")
    names = world.client.connection.names
    other = names.queue(Kind.DEALERS, "activity", "r")
    assert world.broker.stats(str(other), world.soon()) is None
    assert world.broker.stats(str(names.fair(QUEUE)), world.soon()) is not None
    world.start("noop", task_queue="r").result(SOON_S)
