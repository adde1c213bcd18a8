"""Idle task queues go, served and used ones stay."""

import threading
from datetime import timedelta

from tq_broker import BlockingClient, activity
from tq_broker.common import Route
from tq_broker.model.deployments import VersionServes
from tq_broker.model.names import Names
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.housekeeper import Housekeeper, Idleness


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
async def noop() -> None: ...


def test_a_queue_is_due_once_it_was_idle_at_every_look_for_long_enough():
    idleness = Idleness(after_s=10)

    a, b = ("activity", "q"), ("workflow", "q")
    assert idleness.observe([a, b], now=0) == []
    assert idleness.observe([a], now=5) == []
    assert idleness.observe([a, b], now=10) == [a]
    assert idleness.observe([b], now=19) == []
    assert idleness.observe([b], now=20) == [b]


def test_an_idle_queue_is_removed_and_one_with_a_task_stays():
    client = BlockingClient.connect("memory://housekeeper")
    core = client.core
    log = SettingsLog(core.broker, Names("default"), core.clock)
    core.sender.ensure((Names("default").activity("idle"),), core.deadline())
    client.start_activity(noop, task_queue="used", wait_result=False)
    core.broker.wait_subscribed([log.follow()], core.deadline())
    assert log.wait_read(2, core.deadline())
    keeper = Housekeeper(client.connection, log, 60.0)

    removed = keeper.look(Idleness(after_s=0))

    assert removed == [("activity", "idle")]
    assert core.broker.stats(str(Names("default").activity("idle")), core.deadline()) is None
    stats = core.broker.stats(str(Names("default").activity("used")), core.deadline())
    assert stats is not None
    assert stats.ready == 1
    client.close()


def test_what_goes_wrong_in_a_look_does_not_end_the_looks(caplog):
    client = BlockingClient.connect("memory://housekeeper-wrong")
    core = client.core
    looked = threading.Event()

    class Failing(Housekeeper):
        looks = 0

        def look(self, idleness):
            self.looks += 1
            if self.looks == 1:
                raise ValueError("strange")
            self.stop()
            looked.set()

    Failing(
        client.connection, SettingsLog(core.broker, Names("default"), core.clock), 0.001
    ).start()
    assert looked.wait(10)
    assert "strange" in caplog.text
    client.close()


def test_workflow_task_queues_go_too_and_what_is_paused_stays():
    client = BlockingClient.connect("memory://housekeeper-sides")
    core, names = client.core, Names("default")
    log = SettingsLog(core.broker, names, core.clock)
    queues = [names.workflow("idle"), names.workflow("paused"), names.activity("paused")]
    core.sender.ensure(queues, core.deadline())
    client.pause_task_queue("paused", "maintenance", side="workflow")
    core.broker.wait_subscribed([log.follow()], core.deadline())
    assert log.wait_read(4, core.deadline())

    removed = Housekeeper(client.connection, log, 60.0).look(Idleness(after_s=0))

    assert removed == [("activity", "paused"), ("workflow", "idle")]
    stats = [core.broker.stats(str(queue), core.deadline()) for queue in queues]
    assert [one is not None for one in stats] == [False, True, False]
    assert log.wait_read(6, core.deadline())
    assert (log.task_queues("workflow").keys(), log.task_queues()) == ({"paused"}, {})
    client.close()


def test_a_set_of_capabilities_goes_too():
    client = BlockingClient.connect("memory://housekeeper-sets")
    core, names = client.core, Names("default")
    log = SettingsLog(core.broker, names, core.clock)
    idle, paused = names.capable("q", ["gpu"]), names.capable("p", ["gpu"])
    core.sender.ensure([idle, paused], core.deadline())
    client.pause_task_queue("p")
    core.broker.wait_subscribed([log.follow()], core.deadline())
    assert log.wait_read(3, core.deadline())

    removed = Housekeeper(client.connection, log, 60.0).look(Idleness(after_s=0))

    assert removed == [("activity", "q", "gpu")]
    assert core.broker.stats(str(idle), core.deadline()) is None
    assert core.broker.stats(str(paused), core.deadline()) is not None
    assert log.wait_read(4, core.deadline())
    assert log.capable_queues() == [paused]


def test_tasks_that_wait_for_a_version_without_workers_are_logged(caplog):
    client = BlockingClient.connect("memory://housekeeper-versions")
    core, names = client.core, Names("default")
    log = SettingsLog(core.broker, names, core.clock)
    core.broker.wait_subscribed([log.follow()], core.deadline())
    record = VersionServes("shop", "v1", "activity", "q", 1)
    core.sender.append(record, core.deadline(), lambda error: None)
    assert log.wait_until(lambda found: found.knows("shop.v1"), core.deadline())
    keeper = Housekeeper(client.connection, log, 60.0)
    keeper.warn()
    assert caplog.text == ""
    client.start_activity(noop, task_queue="q", route=Route.version("shop.v1"), wait_result=False)
    keeper.warn()
    assert "1 tasks wait in tq.default.version.activity.shop%2Ev1.q" in caplog.text
    assert "for version shop.v1, and no worker consumes it now" in caplog.text
    client.close()
