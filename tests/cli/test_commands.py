from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result

from tq_broker.cli import commands
from tq_broker.cli.commands import Group, shared


@click.group(cls=Group)
def root() -> None:
    """The root."""


@root.group()
def inner() -> None:
    """A group."""


@inner.command()
@shared(click.option("--one"), click.option("--two"))
@click.pass_context
def leaf(ctx: click.Context, one: str | None, two: str | None) -> None:
    """A leaf."""
    click.echo(f"{commands.said(ctx)} {commands.arguments(ctx)}")


@root.command()
def other() -> None:
    """Another."""


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(root, arguments, env=env)


@pytest.mark.parametrize(
    "arguments",
    [("--json", "inner", "leaf"), ("inner", "--json", "leaf"), ("inner", "leaf", "--json")],
)
def test_global_options_stand_anywhere(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).output == f"{{'json': True}} {list(arguments)}\n"


def test_the_innermost_wins_and_what_is_typed_wins_over_the_environment() -> None:
    typed = run("-A", "one", "inner", "leaf", "-A", "two", TQ_BROKER_APP="three")
    assert "'app': 'two'" in typed.output
    assert "'app': 'one'" in run("-A", "one", "inner", "leaf", TQ_BROKER_APP="three").output
    assert "'app': 'three'" in run("inner", "leaf", TQ_BROKER_APP="three").output
    assert "'loglevel': 'INFO'" in run("inner", "leaf", "-l", "info").output


def test_a_mistyped_command_is_answered_with_a_near_one() -> None:
    answer = run("iner")
    assert answer.exit_code == 2
    assert "There is no command 'iner'. Did you mean 'inner'? Commands: inner, other." in (
        answer.output
    )
    assert "Commands: inner, other." in run("zzz").output


def test_help_keeps_the_global_options_apart() -> None:
    lines = run("inner", "leaf", "--help").output.splitlines()
    own, general = lines.index("Options:"), lines.index("Global options:")
    assert own < general
    assert any("--one" in line for line in lines[own:general])
    assert not any("--json" in line for line in lines[own:general])
    assert any("--json" in line for line in lines[general:])


def test_commands_are_listed_in_their_order() -> None:
    shown = run("--help").output
    assert shown.index("  inner ") < shown.index("  other ")
