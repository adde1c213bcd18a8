"""Programs that run activities.

`Worker` takes tasks from task queues as its slots allow, runs them on an event loop, in threads or
in processes, and tells how they ended.
"""

from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.worker import Worker

__all__ = ["Worker", "WorkerOptions"]
