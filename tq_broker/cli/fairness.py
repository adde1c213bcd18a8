"""``tq-broker task-queue weights``: weights of fairness keys."""

from __future__ import annotations

import click
import msgspec

from tq_broker.cli.commands import Command
from tq_broker.cli.output import age
from tq_broker.cli.session import session_of
from tq_broker.cli.verbs import BOTH
from tq_broker.client.fairness import FairnessOperations
from tq_broker.clock import SystemClock, epoch_ms
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.settings import SIDES

TAKEN_BACK = "default"


@click.command(cls=Command)
@click.argument("name")
@click.argument("weights", nargs=-1, metavar="[KEY=WEIGHT|KEY=default]...")
@click.option("--reason", default="", help="Is kept with it.")
@click.option(
    "--side",
    type=click.Choice([*SIDES, BOTH]),
    default=BOTH,
    show_default=True,
    help="Activities, workflows, or both.",
)
@click.pass_context
def weights(
    ctx: click.Context, name: str, weights: tuple[str, ...], reason: str, side: str
) -> None:
    """Give fairness keys of the task queue NAME weights, or show those that were given.

    A weight is a number from 0.001 to 1000, and counts within a second, whatever tasks say; with
    "default" what they say counts again.
    """
    session = session_of(ctx)
    wanted = dict(map(_weight, weights))
    with session.operator() as client:
        operations = FairnessOperations(client.core)
        if wanted:
            one_side = "" if side == BOTH else side
            records = operations.set_weights(name, wanted, reason=reason, side=one_side)
            said = ", ".join(f"{one.key}: {_shown(one.weight)}" for one in records)
            data = {"weights": [msgspec.to_builtins(one) for one in records]}
            session.output.done(f"weights of {name} set: {said}", data=data)
            return
        told = operations.look(name)
    now_ms = epoch_ms(SystemClock())
    rows = [(side, one) for side, found in told.weights.items() for one in found]
    session.output.rows(
        ("SIDE", "KEY", "WEIGHT", "SET", "BY", "REASON"),
        [
            (
                side,
                one.key,
                _shown(one.weight),
                age((now_ms - one.at_ms) / 1000),
                one.by,
                one.reason,
            )
            for side, one in rows
        ],
        data=[{**msgspec.to_builtins(one), "side": side} for side, one in rows],
        empty=f"no key of {name} has a weight of its own",
    )


def _weight(text: str) -> tuple[str, float | None]:
    """``acme=2.5``. Raises `InvalidArgument`."""
    key, equals, weight = text.rpartition("=")
    if not equals:
        raise InvalidArgument(f"{text!r} is not KEY=WEIGHT, such as acme=2.5")
    if weight == TAKEN_BACK:
        return key, None
    try:
        return key, float(weight)
    except ValueError:
        raise InvalidArgument(f"{text!r}: {weight!r} is not a number, nor 'default'") from None


def _shown(weight: float | None) -> str:
    return TAKEN_BACK if weight is None else f"{weight:g}"
