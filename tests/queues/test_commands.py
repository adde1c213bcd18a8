from __future__ import annotations

import pytest

from tq_broker.queues.commands import Command, CommandQueue


def named(name: str) -> Command[str]:
    return Command(lambda _: name, 1.0)


def test_a_result_reaches_the_caller() -> None:
    command = named("a")
    command.succeed("done")
    assert command.wait(0)
    assert command.result() == "done"


def test_a_failure_is_raised_at_the_caller() -> None:
    command = named("a")
    command.fail(KeyError("why"))
    assert command.wait(0)
    with pytest.raises(KeyError, match="why"):
        command.result()


def test_what_comes_after_the_caller_has_gone_is_discarded() -> None:
    discarded: list[str] = []
    command = Command(lambda _: "x", 1.0, discarded.append)
    assert not command.wait(0)
    assert command.abandoned
    command.succeed("late")
    assert discarded == ["late"]


def test_a_result_in_time_is_not_discarded() -> None:
    discarded: list[str] = []
    command = Command(lambda _: "x", 1.0, discarded.append)
    command.succeed("in time")
    assert command.wait(0)
    assert not discarded


def test_commands_are_taken_in_order_and_the_one_put_back_comes_first() -> None:
    queue = CommandQueue()
    for name in "ab":
        queue.put(named(name))
    queue.put_back(named("c"))
    assert [command.run(0) for command in queue.take()] == ["c", "a", "b"]
    assert not queue


def test_an_abandoned_command_does_not_run() -> None:
    queue = CommandQueue()
    gone = named("gone")
    queue.put(gone)
    queue.put(named("here"))
    assert not gone.wait(0)
    assert [command.run(0) for command in queue.take()] == ["here"]


def test_some_can_be_taken_out_of_turn() -> None:
    queue = CommandQueue()
    for name in "abc":
        queue.put(Command(lambda _, name=name: name, 1.0, offline=name == "b"))
    assert [command.run(0) for command in queue.take_if(lambda c: c.offline)] == ["b"]
    assert [command.run(0) for command in queue.take()] == ["a", "c"]


def test_what_is_put_meanwhile_is_not_taken_in_the_same_go() -> None:
    """Found: some threads that called one after the other kept the thread from all else."""
    queue = CommandQueue()
    queue.put(named("a"))
    taken = []
    for command in queue.take():
        taken.append(command.run(0))
        queue.put(named("b"))
    assert taken == ["a"]
    assert queue
