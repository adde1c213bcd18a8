"""Programs that run activities and workflows.

`Worker` takes tasks from task queues as its slots allow, runs activities on an event loop, in
threads or in processes, and workflow code on a deterministic loop for each run; it tells how they
ended. `Replayer` runs workflow code against stored histories. How many tasks a worker runs at a
time is what a `WorkerTuner` says, see `tq_broker.worker.tuning`.
"""

from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.replayer import Replayer, WorkflowReplayResult, WorkflowReplayResults
from tq_broker.worker.tuning import (
    CustomSlotSupplier,
    FixedSizeSlotSupplier,
    ResourceBasedSlotConfig,
    ResourceBasedSlotSupplier,
    ResourceBasedTunerConfig,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    WorkerTuner,
)
from tq_broker.worker.worker import Worker

__all__ = [
    "CustomSlotSupplier",
    "FixedSizeSlotSupplier",
    "Replayer",
    "ResourceBasedSlotConfig",
    "ResourceBasedSlotSupplier",
    "ResourceBasedTunerConfig",
    "SlotMarkUsedContext",
    "SlotPermit",
    "SlotReleaseContext",
    "SlotReserveContext",
    "Worker",
    "WorkerOptions",
    "WorkerTuner",
    "WorkflowReplayResult",
    "WorkflowReplayResults",
]
