"""Handles of other workflows; what follows is in `tests/worker/test_replay_external.py`."""

from __future__ import annotations

import pytest

from tq_broker import workflow
from tq_broker.exceptions import InvalidArgument


@workflow.defn
class Other:
    @workflow.run
    async def run(self) -> None: ...


def test_a_handle_names_a_run() -> None:
    handle = workflow.get_external_workflow_handle_for(Other.run, "w", run_id="r")
    assert (handle.id, handle.run_id) == ("w", "r")
    assert workflow.get_external_workflow_handle("w").run_id is None


def test_wrong_names_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="workflow_id"):
        workflow.get_external_workflow_handle("")
    with pytest.raises(InvalidArgument, match="not a workflow"):
        workflow.get_external_workflow_handle_for(print, "w")  # type: ignore[arg-type]
