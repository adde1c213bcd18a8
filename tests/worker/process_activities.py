"""Activities that the tests run in processes of their own, which import this module."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tq_broker import activity
from tq_broker.exceptions import ApplicationError, CancelledError


@dataclass
class Order:
    item: str
    count: int


process = activity.defn(executor="process")


@process
def double(order: Order) -> Order:
    assert isinstance(order, Order)
    return Order(order.item, 2 * order.count)


@process
def pid() -> int:
    return os.getpid()


@process
def nothing() -> None:
    pass


@process
def fails(message: str) -> None:
    raise ApplicationError(message, {"at": 3}, type="Sad", non_retryable=True)


@process
def fails_unspeakably() -> None:
    raise ValueError("\ud800")


@process
def leaves() -> None:
    sys.exit(3)


@process
def returns_a_socket() -> Any:
    return threading.Lock()


@process
def beats() -> None:
    activity.heartbeat("first", 1)
    activity.heartbeat("second", 2)


@process
def beats_often(times: int) -> None:
    for number in range(times):
        activity.heartbeat(number)


@process
def tells() -> dict[str, Any]:
    info = activity.info()
    return {
        "id": info.activity_id,
        "type": info.activity_type,
        "attempt": info.attempt,
        "task_queue": info.task_queue,
        "host": info.host,
        "worker": info.worker_id,
        "token": info.task_token.decode(),
        "details": info.heartbeat_details,
        "scheduled": info.scheduled_time.isoformat(),
        "timeout_s": info.start_to_close_timeout and info.start_to_close_timeout.total_seconds(),
        "attempts": info.retry_policy.maximum_attempts,
        "in_activity": activity.in_activity(),
        "converter": type(activity.payload_converter()).__name__,
        "main_thread": threading.current_thread() is threading.main_thread(),
    }


@process
def heeds() -> str:
    activity.heartbeat("ready")
    activity.wait_for_cancelled_sync(60)
    raise CancelledError("as you wish")


@activity.defn(executor="process", no_thread_cancel_exception=True)
def looks() -> str:
    activity.heartbeat("ready")
    while not activity.is_cancelled():
        activity.wait_for_cancelled_sync(60)
    return "looked"


@process
def spins() -> None:
    activity.heartbeat("ready")
    while True:
        pass


@process
def shields() -> str:
    with activity.shield_thread_cancel_exception():
        activity.heartbeat("ready")
        activity.wait_for_cancelled_sync(60)
        activity.heartbeat("cleaned up")
    return "never"


@process
def ignores() -> None:
    while True:
        try:
            activity.heartbeat("ready")
            while True:
                activity.wait_for_cancelled_sync(60)
        except CancelledError:
            activity.heartbeat("ignored")
            break
    while True:
        activity.wait_for_worker_shutdown_sync(60)


@process
def stuck_in_c() -> None:
    """Holds the interpreter's lock for ever."""
    activity.heartbeat("ready")
    ctypes.PyDLL(None).sleep(3600)


@process
def dies(code: int) -> None:
    os._exit(code)


@process
def crashes() -> None:
    ctypes.string_at(0)


@process
def closes_everything() -> None:
    os.closerange(3, 1000)


@process
def leaves_a_child_and_dies() -> None:
    """What it has started keeps its files open."""
    child = subprocess.Popen(["sleep", "3600"], close_fds=False)
    activity.heartbeat(child.pid)
    if os.fork() == 0:
        threading.Event().wait(3600)
    os._exit(7)


@process
def starts_a_program() -> None:
    with subprocess.Popen(["sleep", "3600"]) as child:
        activity.heartbeat(child.pid)


@process
def has_children_of_its_own() -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(abs, (-3,)))


@process
def is_completed_elsewhere() -> None:
    activity.raise_complete_async()


@process
def waits_for_shutdown() -> str:
    activity.heartbeat("ready")
    activity.wait_for_worker_shutdown_sync(60)
    return "shut down" if activity.is_worker_shutdown() else "waited in vain"


@process
def logs() -> None:
    activity.logger.info("spoken inside")


@process
def takes(data: str) -> int:
    return len(data)


@process
def gives(length: int) -> str:
    return "x" * length


@activity.defn(dynamic=True, executor="process")
def anything(args: list[activity.RawValue]) -> str:
    return f"{activity.info().activity_type} {[arg.decode() for arg in args]}"


@process
def touches(path: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("x")


class Greeter:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    @activity.defn(executor="process")
    def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"


@activity.defn(name="callable", executor="process")
class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, number: int) -> int:
        return number + self.amount


class Unpicklable(Greeter):
    def __init__(self) -> None:
        super().__init__("hello")
        self.lock = threading.Lock()


class Unloadable(Greeter):
    def __init__(self) -> None:
        super().__init__("hello")

    def __setstate__(self, state: object) -> None:
        raise ValueError("not here")
