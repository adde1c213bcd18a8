"""Journey: what workers write on a real broker and a real store is what they write embedded."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.histories.comparison import comparable
from tests.histories.features import WORKFLOWS, histories
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Replayer

# Those in which no minutes pass.
NAMES = ["anything", "bereft", "caller", "cancelled", "inbox-failed", "stumbler", "terminated"]


def test_histories_are_the_same_with_a_cache_and_without(
    broker_url: str, namespace: str, tmp_path: Path
) -> None:
    async def journey(cached: int, embedded: bool = False) -> dict[str, WorkflowHistory]:
        env = await WorkflowEnvironment.start_local(
            broker=None if embedded else broker_url,
            store=None if embedded else f"sqlite:///{tmp_path / str(cached)}",
            namespace=f"{namespace}-{cached}",
        )
        return await histories(env, NAMES, max_cached_workflows=cached)

    with_cache = asyncio.run(journey(1000))
    for others in (asyncio.run(journey(0)), asyncio.run(journey(1000, embedded=True))):
        assert others.keys() == with_cache.keys()
        for name, history in with_cache.items():
            assert comparable(name, history) == comparable(name, others[name]), name
    replayer = Replayer(workflows=WORKFLOWS)
    results = asyncio.run(replayer.replay_workflows(with_cache.values()))
    assert not results.replay_failures
