"""Detours: queues of tasks that traffic rules have brought, and that come home by themselves.

A detour belongs to the workers of one task queue (on one host or of one version only, if it names
one), and to one task queue that its tasks come from: what nobody takes in time RabbitMQ itself puts
back there. Its queue is named by a digest of all that, because together it may be longer than a
name can be.
"""

from __future__ import annotations

import hashlib

import msgspec

from tq_broker.common import Requires, WorkerDeploymentVersion
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.capabilities import check_requires
from tq_broker.model.names import (
    TARGET_BYTES_MAX,
    Kind,
    Names,
    QueueName,
    check_task_queue,
    check_text,
    encode_part,
)
from tq_broker.model.rules import TAKE_WITHIN_MS_MAX, TAKE_WITHIN_MS_MIN, TaskKind


class Detour(msgspec.Struct, frozen=True, array_like=True):
    """See the module.

    Attributes:
        task_queue: Whose workers take its tasks; on ``host`` only, if that is not empty.
        home: The task queue that the tasks are from.
        take_within_ms: After that they go back there.
        capabilities: Only workers that have all of these take its tasks.
        version: Only workers of this deployment version do, if it is not empty.
    """

    kind: TaskKind
    task_queue: str
    host: str
    home: str
    take_within_ms: int
    capabilities: tuple[str, ...] = ()
    version: str = ""

    def check(self) -> Detour:
        """Itself, if a rule could have made it. Raises `InvalidArgument`."""
        check_task_queue(self.task_queue)
        check_task_queue(self.home)
        if self.host:
            check_text("host", self.host, bytes_max=TARGET_BYTES_MAX)
        if not TAKE_WITHIN_MS_MIN <= self.take_within_ms <= TAKE_WITHIN_MS_MAX:
            raise InvalidArgument(f"take_within_ms is {self.take_within_ms}")
        if self.version:
            WorkerDeploymentVersion.from_canonical_string(self.version)
        if self.capabilities:
            check_requires(Requires(self.capabilities))
        return self

    def queue(self, names: Names) -> QueueName:
        """Its queue."""
        said = msgspec.structs.astuple(self)
        # Without a version it has the name that it had before there were versions.
        name = msgspec.json.encode(said if self.version else said[:-1])
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        return names.queue(Kind.DETOUR, digest)

    def home_queue(self, names: Names) -> QueueName:
        """Where its tasks go back to."""
        return self._shared(names, self.home)

    def target_queue(self, names: Names) -> QueueName:
        """The shared queue of those who take its tasks; while that is paused they take none."""
        if self.version:
            return names.version(self.kind.value, self.version, self.task_queue)
        return self._shared(names, self.task_queue)

    def _shared(self, names: Names, task_queue: str) -> QueueName:
        return names.shared(task_queue, self.capabilities, Kind(self.kind.value))

    @property
    def ask_key(self) -> str:
        """The control key of the workers that can serve it."""
        target = encode_part(f"host:{self.host}") if self.host else "any"
        if self.version:
            target = encode_part(f"version:{self.version}")
        words = (Kind.DETOUR.value, self.kind.value, target, encode_part(self.task_queue))
        return ".".join(words)
