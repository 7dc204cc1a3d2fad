"""File systems that lack a call: a run does without what isn't essential, warns once, and has the same bits."""

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define

from stackwise_core.cli.failures import report
from stackwise_core.engine.runs.directory import Busy, RunDirectory
from stackwise_core.errors import StackwiseError
from stackwise_core.system import lacking_calls
from tests.run_bits import bits, measured, same
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

CHANGES = {
    "rack.stacks": 2,
    "training.steps_per_stack": 2,
    "checkpoint.steps": 1,
    "evaluation": {"draws": 1, "sequences": 4},
    "cache_backend": {"use": "disk", "shard_entries": 16},
}


def is_directory(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


@define
class FileSystem:
    """Calls of the system, of which one fails where a file system lacks it."""

    patch: pytest.MonkeyPatch
    failed: int = 0

    def lacks(self, owner: object, name: str, number: int, where: Callable[..., bool] = lambda *_: True) -> None:
        """Have a call fail where its arguments are such."""
        real = getattr(owner, name)

        def call(*arguments, **options):
            if where(*arguments):
                self.failed += 1
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        self.patch.setattr(owner, name, call)


@pytest.fixture
def file_system(monkeypatch) -> FileSystem:
    """The file system of one test, of which nothing was said yet."""
    monkeypatch.setattr(lacking_calls, "_said", set())
    return FileSystem(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("undisturbed"), CHANGES).directory


def lose_fsync(disk: FileSystem, number: int) -> None:
    disk.lacks(os, "fsync", number, is_directory)


def lose_all_syncs(disk: FileSystem, number: int) -> None:
    disk.lacks(os, "fsync", number)


def lose_chmod(disk: FileSystem, number: int) -> None:
    disk.lacks(os, "chmod", number)


def lose_flock(disk: FileSystem, number: int) -> None:
    disk.lacks(fcntl, "flock", number)


def lose_mmap(disk: FileSystem, number: int) -> None:
    disk.lacks(mmap, "mmap", number, lambda descriptor, *_: descriptor != -1)


def lose_advice(disk: FileSystem, number: int) -> None:
    disk.lacks(os, "posix_fadvise", number)


@pytest.mark.parametrize(
    ("lose", "numbers", "said"),
    [
        (lose_fsync, ("EINVAL", "ENOTSUP"), "may be gone after a power failure"),
        (lose_all_syncs, ("ENOSYS",), "may be gone after a power failure"),
        (lose_chmod, ("EPERM", "ENOTSUP"), "whatever the umask"),
        (lose_flock, ("ENOSYS", "ENOLCK", "EBADF"), "nothing keeps a second process from working on this run"),
        (lose_mmap, ("ENODEV",), "tokens are read into memory as a whole"),
        (lose_advice, ("EINVAL",), None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_run_does_without(tmp_path, file_system, undisturbed, caplog, lose, numbers, said):
    """It has the bits of any other; one warning names the directory, the call and what is lost."""
    for number in numbers:
        lacking_calls._said.clear()
        caplog.clear()
        with file_system.patch.context() as patch, caplog.at_level(logging.WARNING):
            lacking = FileSystem(patch)
            lose(lacking, getattr(errno, number))
            directory = run_tiny(tmp_path / number, CHANGES).directory
        assert lacking.failed > 1 or lose is lose_flock
        assert same(bits(directory), bits(undisturbed))
        assert measured(directory) == measured(undisturbed)
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == (said is not None)
        assert all(said in each and str(tmp_path) in each for each in warnings)
        assert all(os.strerror(getattr(errno, number)) in each for each in warnings)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_other_errors_of_a_sync_are_errors(tmp_path, file_system, number):
    """The disk is broken or full: nothing to do without."""
    lose_all_syncs(file_system, number)
    with pytest.raises((OSError, StackwiseError), match=os.strerror(number)):
        run_tiny(tmp_path, CHANGES)


def test_a_lock_that_another_has_is_no_lack(tmp_path):
    """Else two would write."""
    directory = RunDirectory.create(tmp_path, "run")
    with directory.locked(), pytest.raises(Busy), RunDirectory(directory.path).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP])
def test_what_is_essential_is_one_error_with_a_way_round(tmp_path, file_system, capsys, number):
    """A file system without renames can hold no run: the file is named, and which keys name another place."""
    file_system.lacks(os, "replace", number)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        run_tiny(tmp_path, CHANGES)
    assert report(caught.value, debug=False) == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "name a directory on another one (run.directory, data.tokens_directory, cache_backend.directory)" in said


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOLCK, errno.ENOSYS])
def test_lmdb_cannot_do_without_maps_and_locks(tmp_path, monkeypatch, number):
    """Its error names the directory and the backend that can; nothing is left there."""
    import lmdb

    def fail(path: str, **options: object) -> None:
        (Path(path) / "lock.mdb").touch()
        error = lmdb.Error(f"{path}: {os.strerror(number)}")
        error.code = number
        raise error

    monkeypatch.setattr(lmdb, "open", fail)
    with pytest.raises(StackwiseError, match="LMDB maps and locks its files") as caught:
        run_tiny(tmp_path, CHANGES | {"cache_backend": {"use": "lmdb"}})
    assert str(tmp_path) in str(caught.value)
    assert 'cache_backend.use = "disk"' in str(caught.value)
    assert not [*tmp_path.rglob("lock.mdb")]
