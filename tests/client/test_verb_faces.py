"""Both faces have the same verbs. What they do is in ``test_verbs.py`` and others."""

from __future__ import annotations

import inspect

from tq_broker.client import BlockingClient, Client
from tq_broker.client.verb_faces import AsyncVerbs, BlockingVerbs


def verbs(face: type) -> dict[str, str]:
    return {
        name: str(inspect.signature(function))
        for name, function in vars(face).items()
        if inspect.isfunction(function)
    }


def test_both_faces_take_the_same_arguments() -> None:
    assert verbs(AsyncVerbs) == verbs(BlockingVerbs)
    assert all(inspect.iscoroutinefunction(getattr(Client, name)) for name in verbs(AsyncVerbs))
    assert not any(
        inspect.iscoroutinefunction(getattr(BlockingClient, name)) for name in verbs(BlockingVerbs)
    )
