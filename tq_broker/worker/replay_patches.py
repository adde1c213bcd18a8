"""Patches of a run: which of two ways its code takes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tq_broker.model.commands import RecordMarker
from tq_broker.model.events import Event, MarkerRecorded
from tq_broker.worker.ledger import PATCH
from tq_broker.worker.situation import Situation


class ReplayPatches:
    """What `tq_broker.workflow.patched` has answered, and what history says it has."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        self._noted: set[str] = set()
        self._answers: dict[str, bool] = {}

    def note(self, events: Iterable[Event]) -> None:
        """The patches that the task which is about to be replayed has marked."""
        for event in events:
            if isinstance(event, MarkerRecorded) and event.marker_name == PATCH:
                self._noted.add(msgspec.json.decode(event.details.get("id", b'""')))

    def patched(self, patch_id: str, *, deprecated: bool) -> bool:
        """See `tq_broker.workflow.patched`."""
        known = self._answers.get(patch_id)
        if known is not None:
            return known
        self._situation.check("ask for a patch")
        answer = not self._situation.replaying or patch_id in self._noted
        self._answers[patch_id] = answer
        if answer:
            details = {"id": msgspec.json.encode(patch_id)}
            details["deprecated"] = msgspec.json.encode(deprecated)
            self._situation.ledger.add(RecordMarker(marker_name=PATCH, details=details))
        return answer
