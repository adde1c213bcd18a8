from pathlib import Path

from tq_broker.cli.sources import Sources, snapshot


def test_python_files_are_watched(tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", "pkg/c.py", ".git/d.py", "venv/e.py", "pkg/__pycache__/f.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(snapshot(tmp_path)) == [str(tmp_path / "a.py"), str(tmp_path / "pkg/c.py")]


def test_a_change_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.touch()
    sources = Sources(tmp_path)
    assert not sources.changed()
    import os

    os.utime(file, ns=(1, 1))
    assert sources.changed()
    assert not sources.changed()
    (tmp_path / "b.py").touch()
    assert sources.changed()
    file.unlink()
    assert sources.changed()
    assert not sources.changed()
