"""The command ``tq-broker``: its group, its exit codes, and errors on one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from tq_broker.cli import commands, exits
from tq_broker.cli.activity import activity
from tq_broker.cli.broadcast import broadcast
from tq_broker.cli.demo import demo
from tq_broker.cli.deployment import deployment
from tq_broker.cli.dev import dev
from tq_broker.cli.doctor import doctor
from tq_broker.cli.fairness import weights
from tq_broker.cli.figures import figures
from tq_broker.cli.history import history
from tq_broker.cli.output import leave_behind, visible
from tq_broker.cli.parked import parked
from tq_broker.cli.passwords import without_password
from tq_broker.cli.route import route
from tq_broker.cli.task_queue import task_queue
from tq_broker.cli.verbs import VERBS
from tq_broker.cli.worker import worker
from tq_broker.cli.workflow import workflow
from tq_broker.exceptions import TqBrokerError

PROGRAM = "tq-broker"

EPILOG = f"""\
\b
Examples:
  tq-broker -b amqp://localhost doctor
  tq-broker -A app.activities worker -Q mail,reports -c 50 -l INFO
  tq-broker activity execute send --task-queue mail --args '["ann@example.org"]' \\
      --start-to-close 30s
  tq-broker task-queue list --json

Settings come from options, then TQ_BROKER_URL, TQ_BROKER_NAMESPACE, TQ_BROKER_PROFILE, \
TQ_BROKER_APP, TQ_BROKER_LOGLEVEL, ..., then the profile in ~/.config/tq_broker/tq_broker.toml \
or TQ_BROKER_CONFIG_FILE.

Others on this machine can read command lines: a password is better set in TQ_BROKER_URL or in a \
profile. One that is given with -b is moved to the environment at once.

\b
Completion, for bash (zsh and fish likewise):
  eval "$(_TQ_BROKER_COMPLETE=bash_source tq-broker)"

{exits.TABLE}"""


class Main(commands.Group):
    """The outermost group: here errors become one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except TqBrokerError as error:
            click.echo(f"{PROGRAM}: {visible(exits.message_of(error))}", err=True)
            ctx.exit(exits.code_of(error))
        except KeyboardInterrupt:
            click.echo(f"{PROGRAM}: interrupted", err=True)
            ctx.exit(exits.INTERRUPTED)
        if isinstance(code, int) and code != exits.OK:
            ctx.exit(code)
        return code


def _version() -> str:
    try:
        return version("tq-broker")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(_version(), prog_name=PROGRAM)
def cli() -> None:
    """Activity task queues and durable workflows on RabbitMQ.

    Global options may stand before or after the command.
    """


for command in (
    worker, activity, workflow, task_queue, route, deployment, history, parked, doctor, demo, dev
):  # fmt: skip
    cli.add_command(command)
activity.add_command(broadcast)
task_queue.add_command(figures)
task_queue.add_command(weights)
for verb in VERBS:
    task_queue.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: ``None`` takes this process's, which is started anew without a password that
            stands in them.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        kept, hidden = without_password(arguments)
        if hidden:
            os.environ.update(hidden)
            os.execv(sys.executable, [sys.executable, "-m", "tq_broker", *kept])
    try:
        result = cli.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        click.echo("", err=True)
        return exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    finally:
        leave_behind()
    return result if isinstance(result, int) else exits.OK
