"""A run that a process works on is seen as such, and left alone."""

from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.run_files import busy
from stackwise_core.run_files.busy import is_worked_on, locked_files


def test_a_lock_is_seen_without_being_taken(tmp_path):
    """While it is held, and no longer."""
    for name in ("held", "free"):
        (tmp_path / name).mkdir()
    with RunDirectory(tmp_path / "held").locked():
        locked = locked_files()
    assert is_worked_on(tmp_path / "held", locked)
    assert not is_worked_on(tmp_path / "free", locked)
    assert not is_worked_on(tmp_path / "held", locked_files())


def test_who_waits_for_a_lock_does_not_hold_it(tmp_path, monkeypatch):
    """And a system that tells nothing knows of no lock."""
    monkeypatch.setattr(busy, "LOCKS", tmp_path / "locks")
    assert locked_files() == frozenset()
    (tmp_path / "locks").write_text(
        "1: FLOCK  ADVISORY  WRITE 11973 fe:00:2146473 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 9 fe:00:77 0 EOF\n\nodd\n"
    )
    assert locked_files() == {"fe:00:2146473"}
