from __future__ import annotations

from tests.history.worlds import World
from tq_broker.client.core import ClientCore
from tq_broker.client.shards import look
from tq_broker.model.requests import SHARDS


def test_a_look_tells_owners_and_what_waits() -> None:
    world = World()
    try:
        core = ClientCore(world.connect("looker"))
        before = look(core, 0.2)
        assert [(one.info, one.waiting) for one in before] == [(None, None)] * SHARDS
        world.service(identity="h1")
        world.start()
        found = look(core, 20.0)
        assert [one.shard for one in found] == list(range(SHARDS))
        assert all(one.info is not None and one.info.owner == "h1" for one in found)
        assert sum(one.info.open_runs for one in found if one.info is not None) == 1
        assert {one.waiting for one in found} == {0}
    finally:
        world.close()
