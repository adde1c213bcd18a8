"""Capabilities: what workers say that they have, what tasks require, and who is meant by that.

A task that waits for a capable worker for as long as it takes is on a shared queue of its task
queue and its set of capabilities. One that does not, or that has a route as well, is for a *niche*:
those workers of its task queue that have all of its capabilities (and are on its host, or are its
process). A niche has a private queue, which is there only as long as somebody serves it; it is
named by a digest, because all that together may be longer than a name can be.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable

import msgspec

from tq_broker.common import Requires, WorkerDeploymentVersion
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import (
    CAPABILITIES_BYTES_MAX,
    NICHES,
    TARGET_BYTES_MAX,
    Kind,
    Names,
    QueueName,
    check_task_queue,
    check_text,
    encode_part,
    set_part,
)

CAPABILITIES_MAX = 64
"""Capabilities of one worker."""


def check_capabilities(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    """The capabilities of a worker, each once and in order.

    Raises:
        InvalidArgument: names ``argument`` and what is wrong.
    """
    if isinstance(value, str):
        raise InvalidArgument(f'{argument} must be a set of names, such as {{"gpu"}}')
    names = {check_text(argument, name, bytes_max=CAPABILITIES_BYTES_MAX // 2) for name in value}
    if len(names) > CAPABILITIES_MAX:
        raise InvalidArgument(f"{argument} has {len(names)} names; the bound is {CAPABILITIES_MAX}")
    return tuple(sorted(names))


def check_requires(requires: Requires) -> Requires:
    """``requires``, if its names can be those of a queue.

    Raises:
        InvalidArgument: names what is wrong.
    """
    if not requires.capabilities:
        raise InvalidArgument("requires has no capabilities")
    for name in requires.names:
        check_text("requires", name)
    if (size := len(encode_part(set_part(requires.names)))) > CAPABILITIES_BYTES_MAX:
        raise InvalidArgument(
            f"requires is {size} bytes long when encoded for RabbitMQ, separators included;"
            f" the bound is {CAPABILITIES_BYTES_MAX}"
        )
    return dataclasses.replace(requires, capabilities=requires.names)


class Niche(msgspec.Struct, frozen=True, array_like=True):
    """Who may serve a private queue: see the module.

    Attributes:
        task_queue: Whose workers are meant;
        capabilities: those of them that have all of these,
        host: and are on this host, if it is not empty,
        worker_id: and are this process, if it is not empty,
        version: and are of this deployment version, or of none if it is empty; ``None``: of any.
        side: Which tasks of the task queue are meant, ``activity`` or ``workflow``. Those of
            workflows may require nothing, and only be bound to a host or process.
    """

    task_queue: str
    capabilities: tuple[str, ...]
    host: str = ""
    worker_id: str = ""
    version: str | None = None
    side: str = Kind.ACTIVITY.value

    def check(self) -> Niche:
        """Itself, if a task could have made it. Raises `InvalidArgument`."""
        check_task_queue(self.task_queue)
        if self.side not in _SIDES:
            raise InvalidArgument(f"side is {self.side!r}; it must be one of {', '.join(_SIDES)}")
        if self.capabilities or self.side == Kind.ACTIVITY.value:
            check_requires(Requires(self.capabilities))
        for text in (self.host, self.worker_id):
            if text:
                check_text("target", text, bytes_max=TARGET_BYTES_MAX)
        if self.version:
            WorkerDeploymentVersion.from_canonical_string(self.version)
        return self

    def queue(self, names: Names) -> QueueName:
        """Its private queue."""
        said = msgspec.structs.astuple(self)
        # Of activities it has the name that it had before workflows had any.
        name = msgspec.json.encode(said[:-1] if self.side == Kind.ACTIVITY.value else said)
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        return names.queue(NICHES[Kind(self.side)], digest, self.task_queue)

    def fits(
        self, capabilities: Collection[str], host: str, worker_id: str, version: str = ""
    ) -> bool:
        """Whether a worker of its task queue belongs to it."""
        return (
            set(self.capabilities) <= set(capabilities)
            and self.host in ("", host)
            and self.worker_id in ("", worker_id)
            and self.version in (None, version)
        )

    @property
    def ask_key(self) -> str:
        """The control key of the workers that may belong to it."""
        task_queue = encode_part(self.task_queue)
        if self.side == Kind.WORKFLOW.value:
            target = f"host:{self.host}" if self.host else "any"
            target = f"process:{self.worker_id}" if self.worker_id else target
            return f"{Kind.WORKFLOW_NICHE.value}.{encode_part(target)}.{task_queue}"
        if self.worker_id:
            return f"{Kind.PROCESS.value}.{encode_part(self.worker_id)}.{task_queue}"
        if self.host:
            return f"{Kind.HOST.value}.{encode_part(self.host)}.{task_queue}"
        return f"{Kind.NICHE.value}.{task_queue}"

    def __str__(self) -> str:
        where = f" on host {self.host!r}" if self.host else ""
        where += f" in process {self.worker_id!r}" if self.worker_id else ""
        where += f" of version {self.version!r}" if self.version else ""
        where += f" with {in_words(self.capabilities)}" if self.capabilities else ""
        return f"workers of task queue {self.task_queue!r}{where}"


_SIDES = tuple(kind.value for kind in NICHES)


def in_words(capabilities: Iterable[str]) -> str:
    """``gpu, ssd``."""
    return ", ".join(sorted(capabilities))
