"""The demo, embedded. On RabbitMQ, and with worker processes: ``integration/test_demo.py``."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tq_broker.cli.demo import BUNDLED, demo, find_sources, named
from tq_broker.cli.main import Main
from tq_broker.exceptions import InvalidArgument

TEXT = b"one two three\n" * 500


@click.group(cls=Main)
def program() -> None:
    """As ``tq-broker``, with the one command that is tested."""


program.add_command(demo)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "NAMESPACE", "PROFILE", "APP", "LOGLEVEL", "CONFIG_FILE"):
        monkeypatch.delenv(f"TQ_BROKER_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["demo", *arguments], catch_exceptions=False)


def rows(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    directory = tmp_path / "texts"
    directory.mkdir()
    for number in range(3):
        (directory / f"{number}.txt").write_bytes(TEXT)
    return directory


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/good") else 404)
            self.end_headers()
            self.wfile.write(TEXT)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_without_a_broker_it_runs_embedded_and_every_file_is_verified() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "embedded" in result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    files = sorted(path for path in BUNDLED.iterdir() if path.name != "README.txt")
    assert [line[0] for line in lines] == [path.name for path in files]
    for line, path in zip(lines, files, strict=True):
        _, host, attempts, _, words, sha256, verdict = line
        assert host in {"host-1", "host-2", "host-3"}
        assert attempts == "1"
        assert words == str(len(path.read_bytes().split()))
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        assert verdict == "verified"
    assert "all 12 uploads are verified" in result.stderr


def test_in_a_pipe_progress_is_plain_lines() -> None:
    result = run("--files", "1")
    assert "apache-2.0.txt: downloaded (host-" in result.stderr
    assert "\x1b" not in result.output


def test_several_hosts_take_part_and_each_file_stays_on_its_host() -> None:
    result = run("--json", "--workers", "4")
    assert len({row["host"] for row in rows(result)}) > 1


def test_a_killed_worker_leaves_a_table_that_is_complete() -> None:
    result = run("--json", "--kill-worker")
    assert result.exit_code == 0, result.output
    assert len(rows(result)) == 12
    assert all(row["verified"] for row in rows(result))
    assert any(row["attempts"] > 1 for row in rows(result))
    assert len({row["host"] for row in rows(result)}) >= 2


def test_a_workflow_can_see_to_each_file() -> None:
    result = run("--json", "--workflow")
    assert result.exit_code == 0, result.output
    assert len(rows(result)) == 12
    assert all(row["verified"] and row["attempts"] == 1 for row in rows(result))
    assert len({row["host"] for row in rows(result)}) > 1


def test_a_killed_worker_costs_workflows_attempts_and_no_files() -> None:
    result = run("--json", "--workflow", "--kill-worker")
    assert result.exit_code == 0, result.output
    assert all(row["verified"] for row in rows(result))
    assert any(row["attempts"] > 1 for row in rows(result))


def test_it_says_whom_it_kills() -> None:
    result = run("--kill-worker", "--files", "3", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "killed the worker on host-" in result.stderr


def test_files_of_a_directory(texts: Path) -> None:
    result = run("--json", "--input", str(texts))
    assert result.exit_code == 0, result.output
    assert [row["file"] for row in rows(result)] == ["0.txt", "1.txt", "2.txt"]
    assert {row["words"] for row in rows(result)} == {1500}


def test_files_of_urls(server: str) -> None:
    result = run("--json", f"{server}/good/a.txt", f"{server}/good/a.txt?b=c")
    assert result.exit_code == 0, result.output
    assert [row["file"] for row in rows(result)] == ["a.txt", "2-a.txt"]
    assert {row["sha256"] for row in rows(result)} == {hashlib.sha256(TEXT).hexdigest()}


def test_a_url_that_is_not_there_is_a_failed_row(server: str) -> None:
    result = run("--json", f"{server}/good", f"{server}/bad")
    assert result.exit_code == 1
    assert [row["error"] for row in rows(result)] == ["", "HTTP status 404 Not Found"]


def test_a_server_that_is_not_there_is_a_failed_row() -> None:
    result = run("http://127.0.0.1:1/x")
    assert result.exit_code == 1
    assert "failed: no download: " in result.stdout
    assert "1 of 1 files failed" in result.stderr


def test_a_file_that_cannot_be_read_is_a_failed_row(texts: Path) -> None:
    (texts / "broken.txt").symlink_to(texts / "missing")
    result = run("--json", "--input", str(texts))
    assert result.exit_code == 1
    errors = {row["file"]: row["error"] for row in rows(result)}
    assert errors.pop("broken.txt") == "cannot be read: No such file or directory"
    assert set(errors.values()) == {""}


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty").touch()
    (row,) = rows(run("--json", "--input", str(tmp_path / "in")))
    assert (row["words"], row["sha256"]) == (0, hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "/no/such"], "--input /no/such: No such file or directory"),
        (["--input", __file__], "is not a directory"),
        (["ftp://host/file"], "'ftp://host/file' is not an http:// or https:// URL"),
        (["http://"], "'http://' is not an http:// or https:// URL"),
        (["http://[/x"], "is not an http:// or https:// URL"),
        (["http://a/b", "--input", "/tmp"], "give either --input or URLs, not both"),
        (["--kill-worker", "--workers", "1"], "--kill-worker needs at least two --workers"),
        (["--workers", "0"], "0 is not in the range"),
        (["--files", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_is_said_on_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not result.stdout


def test_a_directory_without_files_is_said_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    result = run("--input", str(tmp_path / "in"))
    assert result.exit_code == 2
    assert "there are no files in it" in result.stderr


def test_names_are_unique_and_harmless() -> None:
    sources = ["/a/x.txt", "http://h/x.txt", "http://h/..", "http://h/%2e%2e/", "http://h", "/a/.b"]
    names = [name for name, _ in named(sources)]
    assert names == ["x.txt", "2-x.txt", "file", "_2e_2e", "2-file", "b"]


def test_bundled_are_real_texts() -> None:
    sizes = [Path(source).stat().st_size for source in find_sources([], None)]
    assert len(sizes) == 12
    assert min(sizes) > 5_000
    assert sum(sizes) > 200_000


def test_both_kinds_of_input_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        find_sources(["http://a/b"], ".")
