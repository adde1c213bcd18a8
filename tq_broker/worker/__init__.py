"""Programs that run activities and workflows.

`Worker` takes tasks from task queues as its slots allow, runs activities on an event loop, in
threads or in processes, and workflow code on a deterministic loop for each run; it tells how they
ended. `Replayer` runs workflow code against stored histories.
"""

from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.replayer import Replayer, WorkflowReplayResult, WorkflowReplayResults
from tq_broker.worker.worker import Worker

__all__ = [
    "Replayer",
    "Worker",
    "WorkerOptions",
    "WorkflowReplayResult",
    "WorkflowReplayResults",
]
