"""Programs that start activities and wait for their outcomes.

`Client` is for ``asyncio``; `BlockingClient` for everything else (Django, Flask, Celery tasks,
scripts). Both are thin faces of one core and take the same arguments.
"""

from tq_broker.client.faces import (
    ActivityHandle,
    AsyncActivityHandle,
    BlockingActivityHandle,
    BlockingAsyncActivityHandle,
    BlockingClient,
    Client,
)

__all__ = [
    "ActivityHandle",
    "AsyncActivityHandle",
    "BlockingActivityHandle",
    "BlockingAsyncActivityHandle",
    "BlockingClient",
    "Client",
]
