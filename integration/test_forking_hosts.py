"""Celery and Gunicorn fork from a process that has made a client, and every child can use it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.journey import PATIENCE_S, ROOT, Site, site_at, wait_until
from integration.journey_activities import LEDGER
from integration.ledger import SUCCESS

APPLICATIONS = "integration.forking_hosts"
PER_CHILD = 3
LISTENS = re.compile(r"Listening at: (http://127\.0\.0\.1:\d+)")


class Host:
    """A process that loads our applications, and what it forks; made by `hosted`."""

    def __init__(self, site: Site, log: Path, *command: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={
                    **os.environ,
                    "TQ_BROKER_URL": site.url,
                    "TQ_BROKER_NAMESPACE": site.namespace,
                    LEDGER: site.ledger.path,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                # So that its children go with it when the test ends.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> str:
        """What it and its children have logged."""
        return self._log.read_text(errors="replace")

    def wait_for(self, is_true: Callable[[], object], what: str) -> None:
        try:
            wait_until(lambda: is_true() or self._process.poll() is not None, what)
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{error}\n{self.said()}") from error
        assert self._process.poll() is None, f"it has ended:\n{self.said()}"

    def wait(self) -> None:
        """Wait for its end; the client keeps nobody from leaving."""
        assert self._process.wait(PATIENCE_S) == 0, self.said()

    def end(self) -> None:
        """What a service manager does."""
        self._process.terminate()
        self.wait()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """A site with one worker, which the applications need from their import on."""
    with site_at(broker_url, namespace, tmp_path) as site:
        site.worker().ready()
        yield site


@contextlib.contextmanager
def hosted(site: Site, tmp_path: Path, *command: str) -> Iterator[Host]:
    """Run ``python -m command``."""
    host = Host(site, tmp_path / f"{command[0]}.log", *command)
    try:
        yield host
    finally:
        host.close()


def check(site: Site, host: Host, keys: list[str]) -> None:
    """Each key was asked, done and answered once, by children with the client of their host."""
    assert not site.check(once=keys).faults
    for word in ("intent", "accepted", "start", "effect", "done"):
        found = Counter(event.key for event in site.ledger.events(word))
        assert found == Counter(keys), word
    assert {event.note for event in site.ledger.events("done")} == {SUCCESS}
    assert {event.note for event in site.ledger.events("intent")} == {str(host.pid)}
    assert host.pid not in served_by(site), "the host itself serves nothing"


def served_by(site: Site) -> Counter[int]:
    """How many keys each process got answered."""
    return Counter(event.pid for event in site.ledger.events("done"))


def test_every_child_of_celery_asks_with_the_client_of_its_parent(
    site: Site, tmp_path: Path
) -> None:
    keys = [site.key() for _ in range(8 * PER_CHILD)]
    worker = ("celery", "-A", APPLICATIONS, "worker", "--pool", "prefork", "--concurrency", "3")
    limits = ("--max-tasks-per-child", str(PER_CHILD), "-l", "INFO")
    alone = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    with hosted(site, tmp_path, *worker, *limits, *alone) as celery:
        with hosted(site, tmp_path, APPLICATIONS, *keys) as sender:
            sender.wait()
        celery.wait_for(lambda: site.ledger.count("done") >= len(keys), "every outcome")
        celery.end()
        check(site, celery, keys)
        assert len(served_by(site)) >= len(keys) // PER_CHILD
        assert max(served_by(site).values()) == PER_CHILD, "a child used the client repeatedly"


def test_workers_of_a_preloaded_gunicorn_ask_also_those_forked_for_one_that_was_killed(
    site: Site, tmp_path: Path
) -> None:
    options = ("--preload", "--workers", "3", "--bind", "127.0.0.1:0", f"{APPLICATIONS}:wsgi")
    with hosted(site, tmp_path, "gunicorn", *options) as gunicorn:
        gunicorn.wait_for(lambda: LISTENS.search(gunicorn.said()), "its port")
        found = LISTENS.search(gunicorn.said())
        assert found is not None
        url, keys = found[1], []

        def request_until(is_true: Callable[[], object], what: str) -> None:
            """Some requests at once, again and again: while one worker is busy, others get them."""

            def serves() -> object:
                some = [site.key() for _ in range(6)]
                keys.extend(some)
                assert list(pool.map(lambda key: fetch(f"{url}/{key}"), some)) == some
                return is_true()

            gunicorn.wait_for(serves, what)

        with ThreadPoolExecutor(6) as pool:
            request_until(lambda: len(served_by(site)) == 3, "three workers serve")
            before = set(served_by(site))
            killed = min(before)
            os.kill(killed, signal.SIGKILL)
            request_until(lambda: served_by(site).keys() - before, "a new one serves")
            survivors = before - {killed}
            counts = served_by(site)
            request_until(
                lambda: all(served_by(site)[pid] > counts[pid] for pid in survivors),
                "the others still do",
            )
        gunicorn.end()
        check(site, gunicorn, keys)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return answer.read().decode()
