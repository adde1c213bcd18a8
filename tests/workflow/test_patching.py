"""Patches, as they are asked for; what follows is in `tests/worker/test_replay_patches.py`."""

from __future__ import annotations

import pytest

from tq_broker import workflow
from tq_broker.exceptions import InvalidArgument


def test_a_patch_needs_a_name() -> None:
    for ask in (workflow.patched, workflow.deprecate_patch):
        with pytest.raises(InvalidArgument, match="id"):
            ask("")
