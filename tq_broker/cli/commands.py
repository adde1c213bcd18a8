"""Commands: click's, with global options that stand before or after the sub-command.

Rules of this file: every command takes every global option; the innermost one that was typed
wins, and what was typed wins over the environment. They are kept in click's ``Context.meta``,
from which `tq_broker.cli.session` makes one value.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

_META = "tq_broker.cli.globals"
_ARGV = "tq_broker.cli.argv"

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def global_options() -> list[click.Option]:
    """The options that every command has, made anew."""

    def option(*names: str, **settings: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, **settings)

    return [
        option(
            "-A",
            "--app",
            metavar="MODULE[:ATTR]",
            envvar="TQ_BROKER_APP",
            help="Where activities and workflows are: a module, or an attribute of one (a list of"
            " them, or a dict of Worker keywords). Looked for here, too.",
        ),
        option(
            "-b",
            "--broker",
            metavar="URL",
            help="amqp://user:password@host/vhost. Better set TQ_BROKER_URL: others can see"
            " command lines.",
        ),
        option("--namespace", metavar="NAME", help="Keeps applications apart.  [default]"),
        option(
            "--profile",
            metavar="NAME",
            help="Profile of the configuration file (tq_broker.envconfig).",
        ),
        option(
            "-l",
            "--loglevel",
            type=click.Choice(LOG_LEVELS, case_sensitive=False),
            envvar="TQ_BROKER_LOGLEVEL",
            help="Log to stderr from this level on.",
        ),
        option("--json", is_flag=True, help="Print JSON."),
        option("--no-color", is_flag=True, help="Print no colours (so does NO_COLOR=1)."),
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    assert param.name is not None, "all have names"
    said = ctx.meta.setdefault(_META, {})
    source = ctx.get_parameter_source(param.name)
    if source is ParameterSource.COMMANDLINE:
        said[param.name] = value
    elif source is ParameterSource.ENVIRONMENT:
        said.setdefault(param.name, value)
    return value


def said(ctx: click.Context) -> dict[str, Any]:
    """The global options that were given, by name."""
    found: dict[str, Any] = ctx.meta.get(_META, {})
    return found


def arguments(ctx: click.Context) -> list[str]:
    """The whole command line behind the program's name."""
    found: list[str] = ctx.meta.get(_ARGV, [])
    return found


class Command(click.Command):
    """A command with the global options."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_once(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)


class Group(click.Group):
    """A group with the global options, its commands in order, and a guess at mistyped ones."""

    command_class = Command

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_once(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.parent is None:
            ctx.meta[_ARGV] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            there_are = ", ".join(self.commands)
            ctx.fail(f"There is no command {name!r}.{guess} Commands: {there_are}.")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


# A group inside a group is of our class, too.
Group.group_class = Group


def _once(ctx: click.Context) -> list[click.Option]:
    """The global options of one invocation: click wants the same objects each time it asks."""
    key = f"{_META}.{id(ctx)}"
    options: list[click.Option] = ctx.meta.setdefault(key, global_options())
    return options


def _write_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    ours = {option.name for option in global_options()}
    own: list[tuple[str, str]] = []
    general: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            (general if param.name in ours else own).append(record)
    for title, records in (("Options", own), ("Global options", general)):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def shared(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click decorators as one, in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


affinity_options = shared(
    click.option(
        "--affinity",
        type=click.Choice(["host", "process"]),
        help="Its activities and children follow each other to one.",
    ),
    click.option("--affinity-group", metavar="NAME", help="One of several affinities of a run."),
    click.option(
        "--on-lost",
        type=click.Choice(["fail", "restart-affinity", "wait"]),
        help="What they do when that host or process is gone.  [fail]",
    ),
)
"""What `tq_broker.cli.values.parse_affinity` reads."""
