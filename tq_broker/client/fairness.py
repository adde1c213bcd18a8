"""Weights of fairness keys that count whatever tasks say, as an operator sets them.

Blocking. They are records of the settings log, which every worker follows that deals tasks
(`tq_broker.worker.dealer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tq_broker.client.core import ClientCore
from tq_broker.client.settings_book import append, followed
from tq_broker.clock import epoch_ms
from tq_broker.common import check_fairness_key, check_fairness_weight
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.settings import SIDES, WEIGHTS_MAX, FairnessWeightSet

REASON_BYTES_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """What the settings log says of the fairness keys of a task queue.

    Attributes:
        sides: Those of its sides (``activity``, ``workflow``) on which keys have shares, because
            somebody has used one.
        weights: Weights that were set, by side, with who set them.
    """

    sides: tuple[str, ...] = ()
    weights: Mapping[str, tuple[FairnessWeightSet, ...]] = field(default_factory=dict)


class FairnessOperations:
    """Weights of the task queues in the namespace of a client. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    def look(self, task_queue: str) -> Fairness:
        """What is known of the keys of ``task_queue``, which need not exist.

        Raises:
            InvalidArgument: that cannot name a task queue.
        """
        check_task_queue(task_queue)
        with followed(self._core) as log:
            return Fairness(
                sides=tuple(side for side in SIDES if (side, task_queue) in log.fair),
                weights={side: tuple(log.fairness_weights(side, task_queue)) for side in SIDES},
            )

    def set_weights(
        self,
        task_queue: str,
        weights: Mapping[str, float | None],
        *,
        reason: str = "",
        side: str = "",
    ) -> list[FairnessWeightSet]:
        """Give keys of ``task_queue`` these weights; returns when that is on record.

        Args:
            weights: By key, from 0.001 to 1000; ``None``: what its tasks say counts again. At most
                `WEIGHTS_MAX` keys of a task queue have a weight of their own.
            reason: Is kept with it.
            side: ``activity``, ``workflow``, or empty for both.

        Raises:
            InvalidArgument: nothing was recorded.
        """
        check_task_queue(task_queue)
        if reason:
            check_text("reason", reason, bytes_max=REASON_BYTES_MAX)
        if side and side not in SIDES:
            raise InvalidArgument(f"side is {side!r}; it must be one of {', '.join(SIDES)}")
        for key, weight in weights.items():
            check_fairness_key("the key of a weight", key)
            if weight is not None:
                check_fairness_weight(f"the weight of {key!r}", weight)
        self._check_count(task_queue, weights)
        core = self._core
        records = [
            FairnessWeightSet(
                task_queue, key, weight, epoch_ms(core.clock), core.identity, reason, side
            )
            for key, weight in weights.items()
        ]
        for record in records:
            append(core, record)
        return records

    def _check_count(self, task_queue: str, weights: Mapping[str, float | None]) -> None:
        for known in self.look(task_queue).weights.values():
            after = {one.key for one in known} | weights.keys()
            after -= {key for key, weight in weights.items() if weight is None}
            if len(after) > WEIGHTS_MAX:
                raise InvalidArgument(
                    f"{len(after)} keys of task queue {task_queue!r} would have weights of their"
                    f" own; the bound is {WEIGHTS_MAX}: take some back, or let tasks say theirs"
                )
