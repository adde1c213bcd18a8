import os
from pathlib import Path

import pytest

from tq_broker.cli.pidfile import pidfile_of
from tq_broker.exceptions import InvalidArgument


def test_it_is_there_while_the_block_runs(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfile_of(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["999999999", "", "x"])
def test_a_stale_one_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text)
    with pidfile_of(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_that_of_a_living_process_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(str(os.getppid()))
    with (
        pytest.raises(InvalidArgument, match=f"process {os.getppid()} is running"),
        pidfile_of(path),
    ):
        pass
    assert path.exists()


def test_one_whose_directory_is_gone_is_no_mistake(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with pidfile_of(directory / "pid"):
        (directory / "pid").unlink()
        directory.rmdir()
        directory.touch()
    assert directory.is_file()


def test_one_that_another_has_taken_over_is_left(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfile_of(path):
        path.write_text("1")
    assert path.read_text() == "1"
