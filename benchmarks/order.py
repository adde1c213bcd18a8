"""Order: what one peer process is asked to do, and the sample it answers.

Rules of this file: an order travels as command-line arguments, a sample as one JSON line on
standard output; both ends are here, nothing else of the benchmarks crosses the process border.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

READY = "ready"
"""What a process says that serves others."""

FILLED = "filled"
"""What a client says (as ``{"said": ...}``) when the backlog stands and a worker may start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One thing to measure.

    Attributes:
        url: of the broker, in Kombu's form.
        queue: the queue (or task queue) to use; nobody else uses it.
        count: tasks, messages, round trips or queues, by the operation.
        variant: which settings of the peer, empty for its only ones.
        redis_url: of the result store, empty when there is none.
        database_url: of a PostgreSQL database of this measurement, empty when there is none.
    """

    url: str
    queue: str
    count: int
    variant: str = ""
    redis_url: str = ""
    database_url: str = ""

    def arguments(self) -> list[str]:
        """The order as a command line."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The figures of one measurement, by name with unit: ``per_s``, ``median_ms``, ``p99_ms``.

    Attributes:
        figures: the numbers.
        queues: RabbitMQ's queues that were used. They must be empty afterwards (or a message was
            not acknowledged), and are deleted.
    """

    figures: Mapping[str, float]
    queues: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.figures, "a sample without figures says nothing"

    @classmethod
    def parse(cls, line: str) -> Sample:
        """Read what `tell` wrote."""
        read = json.loads(line)
        return cls(figures=read["figures"], queues=tuple(read["queues"]))


Operation = Callable[[Order], Sample]


def say(word: str) -> None:
    """Tell the parent process how far we are."""
    _write({"said": word})


def pause(word: str) -> None:
    """Tell the parent process how far we are, and wait until it has looked around."""
    say(word)
    sys.stdin.readline()


def heard(line: str) -> str | None:
    """The word of a line that `say` wrote; None for any other line."""
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read.get("said") if isinstance(read, dict) else None


def tell(sample: Sample) -> None:
    """Give the parent process the sample."""
    _write(asdict(sample))


def serve(operations: Mapping[str, Operation], arguments: Sequence[str] | None = None) -> None:
    """Run the operation that the command line names, print its sample and end the process.

    The end is abrupt, without clean-up: everything that counts is over, and a library's orderly
    shutdown can take longer than the measurement.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("operation", choices=sorted(operations))
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--redis-url", default="")
    parser.add_argument("--database-url", default="")
    options = vars(parser.parse_args(arguments))
    operation = operations[options.pop("operation")]
    tell(operation(Order(**options)))
    sys.stderr.flush()
    os._exit(0)


def _write(value: Mapping[str, object]) -> None:
    # Past sys.stdout, which some workers redirect into their log.
    os.write(1, (json.dumps(value) + "\n").encode())
