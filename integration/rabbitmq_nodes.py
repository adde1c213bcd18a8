"""The RabbitMQ versions that we promise to work with, each as a private node on this machine.

A version comes from this machine when its package has it, else from a *root*: a whole Debian of the
suite that has it, made once by debootstrap and kept. So the same machine runs old and new
servers, with no containers.

The rules of this file:

- A root is complete or it does not exist for us: it is built aside, marked, then renamed.
- Two test runs may want the same root at the same time; a file lock lets one of them build it.
- Debian's numbers move. A version is asked for by the label of the suite that had it; which one
  really ran stands in pytest's header and summary.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

# Label of the version -> the suite of Debian that has it.
SUITES = {"3.10": "bookworm", "4.0": "trixie", "4.3": "sid"}

# The label of the server that this machine has, whatever its version.
MACHINE = "machine"

_COMPLETE = ".tq-broker-complete"


class NotHere(Exception):
    """This machine cannot run that version; the message says why."""


def chosen_versions() -> list[str]:
    """The labels to test: all, or those that ``TQ_BROKER_VERSIONS`` lists."""
    asked = os.environ.get("TQ_BROKER_VERSIONS", "")
    labels = [label.strip() for label in asked.split(",") if label.strip()] or list(SUITES)
    if unknown := set(labels) - {*SUITES, MACHINE}:
        known = ", ".join([*SUITES, MACHINE])
        raise ValueError(f"TQ_BROKER_VERSIONS: {', '.join(unknown)} is none of {known}")
    return labels


def node_of(label: str) -> LocalRabbitMQ:
    """A node of that version, not started yet.

    Raises:
        NotHere: it cannot be had here.
    """
    if label == MACHINE or is_of_machine(label):
        return LocalRabbitMQ()
    return LocalRabbitMQ(root_of(label))


def is_of_machine(label: str) -> bool:
    return _installed_version(Path("/")).startswith(f"{label}.")


def describe(label: str) -> str:
    """One line for pytest's header: where this version would come from, without building it."""
    if label == MACHINE or is_of_machine(label):
        return f"{label} (this machine's {_installed_version(Path('/')) or 'server'})"
    root = _roots() / label
    if (root / _COMPLETE).exists():
        return f"{label} ({SUITES[label]}'s {_installed_version(root)})"
    return f"{label} ({SUITES[label]}'s, to be built)"


def root_of(label: str) -> Path:
    """The root with that version, built first if there is none yet (about a minute)."""
    root = _roots() / label
    if os.geteuid() != 0:
        raise NotHere(f"only root can run Debian {SUITES[label]} inside this system")
    with _locked(root.with_name(f"{label}.lock")):
        if not (root / _COMPLETE).exists():
            _build(SUITES[label], root)
    return root


def _roots() -> Path:
    if given := os.environ.get("TQ_BROKER_ROOTS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tq-broker" / "roots"


def _installed_version(top: Path) -> str:
    found = sorted((top / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else ""


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # Ends with the process too.
        yield


def _build(suite: str, root: Path) -> None:
    missing = [tool for tool in ("debootstrap", "unshare") if not shutil.which(tool)]
    if missing:
        raise NotHere(f"{' and '.join(missing)} not found; tests/run installs what is needed")
    aside = root.with_name(f"{root.name}.partial")
    for old in (aside, root):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(mode=0o755)
    # In a mount namespace of its own: a build that is killed leaves no /proc mounted, which the
    # next one would then try to remove.
    build = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
    command = [*build, "--include=rabbitmq-server", suite, str(aside)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise NotHere("debootstrap failed:\n" + "\n".join(done.stdout.splitlines()[-10:]))
    shutil.copyfile("/etc/hosts", aside / "etc/hosts")
    for package in (aside / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    (aside / _COMPLETE).touch()
    aside.rename(root)
