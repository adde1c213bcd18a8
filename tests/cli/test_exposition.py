from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tq_broker.cli.exposition import METRICS, as_json, prometheus
from tq_broker.model.composition import Way
from tq_broker.model.figures import Figures, LimitFigures, Part, QueueFigures
from tq_broker.model.limits import Side


def figures(task_queue: str = "mail", **fields: Any) -> Figures:
    named: dict[str, Any] = {
        "side": Side.ACTIVITY,
        "backlog": 3,
        "add_rate": 1.5,
        "dispatch_rate": 0.5,
        "oldest_age_s": None,
        "last_waited_s": 2.0,
        "begun": 1234567,
        "workers": 1,
        "slots": 4,
        "slots_used": 1,
        "slots_free": 3,
        "sticky_hits": 0,
        "sticky_misses": 0,
        "limit": LimitFigures(
            rate=10.0,
            burst=11,
            concurrency=None,
            source="setting",
            by="ann",
            is_paused=False,
            is_limiting=True,
        ),
        "parts": [],
    }
    return Figures(task_queue=task_queue, **(named | fields))


def test_each_metric_has_its_help_and_its_samples() -> None:
    text = prometheus("n", [figures(), figures("jobs", backlog=0)])
    lines = text.splitlines()
    place = lines.index("# TYPE tq_broker_task_queue_backlog gauge")
    assert lines[place - 1].startswith("# HELP tq_broker_task_queue_backlog ")
    assert lines[place + 1 : place + 3] == [
        'tq_broker_task_queue_backlog{namespace="n",task_queue="mail",side="activity"} 3',
        'tq_broker_task_queue_backlog{namespace="n",task_queue="jobs",side="activity"} 0',
    ]
    assert (
        'tq_broker_task_queue_begun{namespace="n",task_queue="mail",side="activity"} 1234567'
        in lines
    )
    assert 'limiting{namespace="n",task_queue="mail",side="activity"} 1\n' in text
    assert text.endswith("\n")


def test_what_is_not_known_is_left_out() -> None:
    text = prometheus("n", [figures()])
    assert "oldest_age" not in text
    assert "limit_concurrency" not in text
    assert prometheus("n", []) == ""


@pytest.mark.parametrize(
    ("name", "told"), [('a"b', r"a\"b"), ("a\\b", r"a\\b"), ("a\nb", r"a\nb"), ("ü", "ü")]
)
def test_names_cannot_break_out_of_their_label(name: str, told: str) -> None:
    lines = prometheus("n", [figures(name)]).splitlines()
    assert all(line.startswith(("#", "tq_broker_task_queue_")) for line in lines)
    assert f'task_queue="{told}",' in lines[2]


def test_parts_have_labels_of_their_own() -> None:
    parts = [
        Part(priority=1, key=None, dispatch_rate=2.0, begun=4),
        Part(priority=None, key="ann", dispatch_rate=1.0, begun=2),
    ]
    text = prometheus("n", [figures(parts=parts)])
    assert 'part_dispatch_rate{namespace="n",task_queue="mail",side="activity",priority="1"} 2' in (
        text
    )
    assert 'side="activity",key="ann"} 1' in text


def test_json_has_an_object_per_task_queue_with_its_sides() -> None:
    told = as_json([figures(), figures(side=Side.WORKFLOW, backlog=9), figures("jobs")])
    assert [one["task_queue"] for one in told] == ["mail", "jobs"]
    assert (told[0]["activity"]["backlog"], told[0]["workflow"]["backlog"]) == (3, 9)
    assert told[1]["workflow"] is None
    assert told[0]["activity"]["limit"]["is_limiting"] is True
    assert msgspec.json.decode(msgspec.json.encode(told)) == told


def test_metric_names_are_distinct() -> None:
    names = [name for name, *_ in METRICS]
    assert len(set(names)) == len(names)


def test_keys_tell_what_limits_them_and_queues_what_waits_there() -> None:
    limit = figures().limit
    parts = [
        Part(priority=None, key="k", dispatch_rate=1.0, begun=2, backlog=7, limit=limit),
        Part(priority=2, key=None, dispatch_rate=0.5, begun=1, last_waited_s=3.0),
    ]
    queue = QueueFigures(
        name="tq.n.version",
        kind="version",
        target="shop.1",
        way=Way.VERSION,
        backlog=4,
        consumers=0,
    )
    text = prometheus("n", [figures(parts=parts, queues=[queue])])
    place = 'namespace="n",task_queue="mail",side="activity"'
    for line in (
        f'part_backlog{{{place},key="k"}} 7',
        f'part_limit_rate{{{place},key="k"}} 10',
        f'part_limiting{{{place},key="k"}} 1',
        f'part_last_wait_seconds{{{place},priority="2"}} 3',
        f'queue_backlog{{{place},kind="version",target="shop.1"}} 4',
        f'queue_consumers{{{place},kind="version",target="shop.1"}} 0',
    ):
        assert f"tq_broker_task_queue_{line}\n" in text
    assert f'part_backlog{{{place},priority="2"}}' not in text
    assert "part_limit_concurrency" not in text
    (told,) = as_json([figures(parts=parts, queues=[queue])])
    assert told["activity"]["queues"][0]["target"] == "shop.1"
    assert told["activity"]["parts"][0]["limit"]["rate"] == 10.0


def test_queues_that_are_called_the_same_are_added_up() -> None:
    """Found: the lanes of a task queue were one series eight times, which Prometheus refuses."""
    lanes = [
        QueueFigures(
            name=f"tq.n.lane.{number}",
            kind="lane",
            target="",
            way=Way.SHARED,
            backlog=number,
            consumers=1,
        )
        for number in range(8)
    ]
    lines = prometheus("n", [figures(queues=lanes), figures("jobs", queues=lanes[:3])]).splitlines()
    samples = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(samples) == len({*samples})
    for task_queue, backlog, consumers in (("mail", 28, 8), ("jobs", 3, 3)):
        place = f'{{namespace="n",task_queue="{task_queue}",side="activity",kind="lane",target=""}}'
        assert f"tq_broker_task_queue_queue_backlog{place} {backlog}" in lines
        assert f"tq_broker_task_queue_queue_consumers{place} {consumers}" in lines


def test_settings_that_are_not_known_are_a_one() -> None:
    text = prometheus("n", [figures(), figures("jobs", settings_fault="torn")])
    assert 'settings_unknown{namespace="n",task_queue="mail",side="activity"} 0\n' in text
    assert 'settings_unknown{namespace="n",task_queue="jobs",side="activity"} 1\n' in text
    (told,) = as_json([figures(settings_fault="torn")])
    assert told["activity"]["settings_fault"] == "torn"
