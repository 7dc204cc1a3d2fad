import json
import os
import shutil
from pathlib import Path

import pytest

from stackwise_core.errors import StackwiseError
from stackwise_core.run_files import manifest as module
from stackwise_core.run_files.manifest import Manifest
from stackwise_core.run_files.names import MANIFEST
from tests.killing import killed_before_change

OLD = {"a": "old a", "stacks/b": "old b", "adapters/000/own/c": "old c"}
NEW = {"a": "new a", "stacks/b": "new b", "adapters/001/trunk/d": "new d"}


def put(manifest: Manifest, name: str, text: str) -> None:
    manifest.write(name, lambda beside: beside.write_text(text))


def old_files(directory: Path) -> Manifest:
    """A directory with ``OLD``."""
    directory.mkdir()
    manifest = Manifest(directory)
    with manifest.together():
        for name, text in OLD.items():
            put(manifest, name, text)
    return manifest


def make_new(manifest: Manifest) -> None:
    """Turn ``OLD`` into ``NEW``: a file is written over, one is new in new folders, one is dropped."""
    with manifest.together():
        for name, text in NEW.items():
            put(manifest, name, text)
        manifest.drop("adapters/000/own/c")


def contents(manifest: Manifest) -> dict[str, str]:
    """Every file that a manifest says there is, read after a look at its checksum."""
    return {name: manifest.checked(name).read_text() for name in manifest}


def files_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_all_of_the_old_or_all_of_the_new(tmp_path):
    """Whatever a process that is killed has done, its files count together, and the next writer tidies up."""
    seen, point, killed = [], 0, True
    while killed:
        directory = tmp_path / str(point)
        manifest = old_files(directory)
        killed = killed_before_change(point, lambda: make_new(manifest))  # noqa: B023
        found = contents(Manifest(directory))
        assert found in (OLD, NEW), point
        seen.append(found)
        after = Manifest(directory)
        after.recover()
        assert contents(after) == found
        assert files_in(directory) == {MANIFEST, *found}, point
        make_new(after)
        assert contents(Manifest(directory)) == NEW
        point += 1
    assert point > 20
    first_new = seen.index(NEW)
    assert seen == [OLD] * first_new + [NEW] * (point - first_new)
    assert point - first_new > 5  # kills after the commit too


@pytest.mark.slow
def test_a_kill_while_recovering_changes_nothing(tmp_path):
    """A recovery that is killed at any point is finished by the next one."""
    committed = tmp_path / "committed"
    manifest = old_files(committed)

    def commit_and_die() -> None:
        manifest._put_in_place = lambda: os._exit(0) if manifest._content.pending else None
        make_new(manifest)

    assert not killed_before_change(1000, commit_and_die)
    (committed / "stacks/.b.77.tmp").write_text("half of a file")
    (committed / "stacks/b.9.new").write_text("never entered")
    assert "a.2.new" in files_in(committed)
    point, killed = 0, True
    while killed:
        directory = tmp_path / str(point)
        shutil.copytree(committed, directory)
        killed = killed_before_change(point, lambda: Manifest(directory).recover())  # noqa: B023
        assert contents(Manifest(directory)) == NEW
        Manifest(directory).recover()
        assert files_in(directory) == {MANIFEST, *NEW}
        point += 1
    assert point > 10


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_exception_at_any_point_leaves_all_of_the_old_or_all_of_the_new(tmp_path, monkeypatch, when, error):
    """Ctrl-C or a disk's error, before or after each rename and sync, leaves no file that doesn't fit the manifest."""
    calls = {"replace": os.replace, "fsync": os.fsync}
    left: list[int] = []

    def failing(name):
        def call(*arguments):
            if when == "after":
                calls[name](*arguments)
            if left:
                left[0] -= 1
                if left[0] < 0:
                    left.clear()
                    raise error("now")
            if when == "before":
                calls[name](*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, failing(name))
    seen: list[dict[str, str]] = []
    failed = True
    while failed:
        directory = tmp_path / str(len(seen))
        manifest = old_files(directory)
        left[:] = [len(seen)]
        try:
            make_new(manifest)
            failed = False
        except error:
            pass
        left.clear()
        found = contents(Manifest(directory))
        assert found in (OLD, NEW)
        assert contents(manifest) == found  # so it can go on with it
        put(manifest, "a", "newest")
        assert contents(Manifest(directory)) == found | {"a": "newest"}
        assert files_in(directory) == {MANIFEST, *found}
        seen.append(found)
    assert OLD in seen
    assert seen.index(NEW) < len(seen) - 5


def test_an_exception_inside_leaves_everything_as_it_was(tmp_path):
    """Neither what was written nor what was dropped before it takes effect, and nothing is left beside."""
    manifest = old_files(tmp_path / "run")
    text = (tmp_path / "run" / MANIFEST).read_text()

    def fail():
        with manifest.together():
            put(manifest, "a", "new a")
            with manifest.together():
                put(manifest, "e", "new e")
                manifest.drop("stacks/b")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert contents(manifest) == contents(Manifest(tmp_path / "run")) == OLD
    assert (tmp_path / "run" / MANIFEST).read_text() == text
    assert files_in(tmp_path / "run") == {MANIFEST, *OLD}


def test_a_nested_together_counts_with_the_outer_one(tmp_path):
    """What an inner one wrote isn't there before the outer one ends."""
    manifest = old_files(tmp_path / "run")
    with manifest.together():
        with manifest.together():
            put(manifest, "a", "new a")
        assert contents(Manifest(tmp_path / "run")) == OLD
        manifest.drop("stacks/b")
    assert contents(Manifest(tmp_path / "run")) == {"a": "new a", "adapters/000/own/c": "old c"}


def test_the_last_of_a_write_and_a_drop_counts(tmp_path):
    """Within one transaction a file can be dropped and written again, or written and dropped again."""
    manifest = old_files(tmp_path / "run")
    with manifest.together():
        manifest.drop("a")
        put(manifest, "a", "again")
        put(manifest, "stacks/b", "again")
        manifest.drop("stacks/b")
        put(manifest, "e", "for nothing")
        manifest.drop("e")
    assert contents(manifest) == {"a": "again", "adapters/000/own/c": "old c"}
    assert files_in(tmp_path / "run") == {MANIFEST, *manifest}


def test_nothing_to_write_writes_nothing(tmp_path):
    """A transaction without a change leaves the manifest alone."""
    manifest = old_files(tmp_path / "run")
    before = (tmp_path / "run" / MANIFEST).stat().st_mtime_ns
    with manifest.together():
        manifest.drop("never there")
    assert (tmp_path / "run" / MANIFEST).stat().st_mtime_ns == before
    assert contents(manifest) == OLD


@pytest.fixture
def committed(tmp_path):
    """A directory whose writer was killed right after the commit, before any file was renamed."""
    manifest = old_files(tmp_path / "run")

    def commit_and_die() -> None:
        manifest._put_in_place = lambda: os._exit(0) if manifest._content.pending else None
        make_new(manifest)

    killed_before_change(1000, commit_and_die)
    assert "a.2.new" in files_in(tmp_path / "run")
    return tmp_path / "run"


def test_a_reader_puts_what_was_committed_in_its_place(committed):
    """So those who read a file by its path see the new one, too."""
    Manifest(committed)
    assert {name: (committed / name).read_text() for name in NEW} == NEW


def test_a_reader_who_may_not_write_reads_what_was_committed(committed, monkeypatch):
    """On a disk that is mounted for reading, or in somebody else's directory, nothing can be renamed."""

    def refuse(source, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert contents(Manifest(committed)) == NEW
    assert (committed / "a").read_text() == "old a"


def test_a_writer_who_cannot_rename_loses_nothing(committed, monkeypatch):
    """It fails, and the files stay pending."""
    replace = os.replace

    def refuse(source, target):
        if Path(target).name == "d":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError):
            put(Manifest(committed), "e", "new e")
    assert contents(Manifest(committed)) == NEW


def test_a_slow_reader_leaves_what_is_not_committed(tmp_path, monkeypatch):
    """One that read an earlier commit's manifest doesn't touch what the next one has beside its place by now."""
    texts, publish_text = [], module.publish_text

    def publish(path, text):
        texts.append(text)
        publish_text(path, text)

    monkeypatch.setattr(module, "publish_text", publish)
    manifest = old_files(tmp_path / "run")
    assert json.loads(texts[0])["pending"] == sorted(OLD)

    def write_and_fail():
        with manifest.together():
            put(manifest, "a", "new a")
            now = (tmp_path / "run" / MANIFEST).read_text()
            (tmp_path / "run" / MANIFEST).write_text(texts[0])
            Manifest(tmp_path / "run")
            (tmp_path / "run" / MANIFEST).write_text(now)
            raise ValueError

    with pytest.raises(ValueError):
        write_and_fail()
    assert contents(Manifest(tmp_path / "run")) == OLD


def test_renames_are_durable_before_the_manifest_forgets_them(tmp_path, monkeypatch):
    """Each folder is synced when one was made in it, and again between its files' renames and the last manifest."""
    events: list[object] = []
    sync, publish_text = module.sync, module.publish_text

    def synced(path):
        events.append(str(path.relative_to(tmp_path)))
        sync(path)

    def published(path, text):
        events.append(json.loads(text))
        publish_text(path, text)

    monkeypatch.setattr(module, "sync", synced)
    monkeypatch.setattr(module, "publish_text", published)
    old_files(tmp_path / "run")
    first, last = (place for place, event in enumerate(events) if isinstance(event, dict))
    assert events[first]["pending"] == sorted(OLD)
    assert (events[last]["pending"], last) == ([], len(events) - 1)
    assert {"run", "run/adapters", "run/adapters/000"} <= set(events[:first])
    assert set(events[first + 1 : last]) == {"run", "run/stacks", "run/adapters/000/own"}


GOOD = {"bytes": 1, "sha256": "0" * 64}


def manifest_with(**changes: object) -> str:
    return json.dumps({"format": 1, "files": {}, "commit": 0, "pending": [], "dropped": []} | changes)


HOSTILE = {
    "leads up": manifest_with(files={"../victim": GOOD}, pending=["../victim"]),
    "leads up from within": manifest_with(files={"a/../../victim": GOOD}, pending=["a/../../victim"]),
    "absolute": manifest_with(files={"/victim": GOOD}, pending=["/victim"]),
    "backslashes": manifest_with(files={"..\\victim": GOOD}),
    "a NUL": manifest_with(files={"a\0b": GOOD}, pending=["a\0b"]),
    "no name": manifest_with(files={"": GOOD}),
    "the directory": manifest_with(files={".": GOOD}),
    "the manifest": manifest_with(files={MANIFEST: GOOD}, pending=[MANIFEST]),
    "drops a file outside": manifest_with(dropped=["../victim"]),
    "drops what it has": manifest_with(files={"a": GOOD}, dropped=["a"]),
    "drops a number": manifest_with(dropped=[3]),
    "a pending file that isn't listed": manifest_with(pending=["a"]),
    "pending is a number": manifest_with(pending=7),
    "pending holds lists": manifest_with(pending=[["a"]]),
    "files is a list": manifest_with(files=["a"]),
    "an entry is a number": manifest_with(files={"a": 5}),
    "an entry without a size": manifest_with(files={"a": {"sha256": "0"}}),
    "a size that is text": manifest_with(files={"a": GOOD | {"bytes": "1"}}),
    "a checksum that is a number": manifest_with(files={"a": GOOD | {"sha256": 1}}),
    "a commit that leads up": manifest_with(files={"a": GOOD}, commit="/../../victim", pending=["a"]),
    "a list": "[]",
    "text": '"files"',
    "nothing": "",
    "half": manifest_with()[:30],
    "deep": "[" * 100_000,
    "too long a number": manifest_with().replace(": 0", ": " + "9" * 5000),
    "not UTF-8": b"\xff\xfe" + manifest_with().encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused_and_touches_nothing(tmp_path, name):
    """A manifest from a stranger names its fault in one message, and leads to no file outside of its directory."""
    content = HOSTILE[name]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    for victim in ("victim", "victim.0.new"):
        (tmp_path / victim).write_text(victim)
    with pytest.raises(StackwiseError, match=r"^[^\n]*run/manifest\.json: not a manifest: [^\n]{5,300}$"):
        Manifest(tmp_path / "run")
    assert files_in(tmp_path) == {"victim", "victim.0.new", "run/manifest.json"}
    assert (tmp_path / "victim").read_text() == "victim"


def test_a_manifest_of_another_format_says_so(tmp_path):
    """One of a later version isn't taken for damage."""
    (tmp_path / MANIFEST).write_text(manifest_with(format=2))
    with pytest.raises(StackwiseError, match="expected a manifest of format 1, found format 2"):
        Manifest(tmp_path)


def test_what_is_said_of_a_file_is_kept_with_it(tmp_path):
    """Values that come with a write stand beside size and checksum, for other processes too."""
    manifest = Manifest(tmp_path)
    manifest.write("a", lambda beside: beside.write_text("x"), precision={"use": "nf4"})
    about = Manifest(tmp_path).about("a")
    assert (about["bytes"], about["precision"]) == (1, {"use": "nf4"})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_text("old B"), "damaged; its checksum isn't the one in manifest.json"),
        (lambda path: path.write_text("old"), "damaged; it has 3 bytes, and manifest.json says 5"),
        (Path.unlink, "missing; it was deleted since it was written"),
        (lambda path: (path.unlink(), path.mkdir()), "missing; it was deleted since it was written"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, damage, problem):
    """A flipped bit, a cut, and a file that is gone are told apart."""
    manifest = old_files(tmp_path / "run")
    damage(tmp_path / "run/stacks/b")
    assert (manifest.problem("a"), manifest.problem("stacks/b")) == (None, problem)
    with pytest.raises(StackwiseError) as caught:
        manifest.checked("stacks/b")
    assert str(caught.value) == f"{tmp_path}/run/stacks/b: {problem}."


def test_a_file_that_was_never_written_is_named(tmp_path):
    """It is an error of its own."""
    with pytest.raises(StackwiseError, match=r"stacks/000: the run hasn't written it\.$"):
        old_files(tmp_path / "run").checked("stacks/000")


def test_a_checksum_that_was_made_while_writing_is_taken(tmp_path, monkeypatch):
    """The file isn't read to make it again."""
    manifest = Manifest(tmp_path)
    monkeypatch.setattr("stackwise_core.run_files.manifest.sha256", lambda path: pytest.fail("it was read"))

    def fill(beside):
        beside.write_text("text")
        return "5" * 64

    manifest.write_hashed("a", fill)
    assert manifest.about("a") == {"bytes": 4, "sha256": "5" * 64}
