"""Runs whose cache is hurt as they go: by kills, by damage, by a full disk. Losses and files are as if it weren't."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import define

from stackwise_cache import shard
from stackwise_core.engine.events.events import Event, PhaseDone, PhaseStarted, RunResult, StepDone
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.run_files.stored_boundaries import read_records
from stackwise_core.testing.damage import Harm, cut, delete, flip, replace
from tests.interrupted_runs import Broken
from tests.run_bits import bits
from tests.survival.killed_while_caching import WRONG
from tests.tiny import Ran, run_tiny, telling, tiny_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENTRY = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
BOUNDARIES = 200  # of a phase: two masks of a hundred sequences

SHORT = {
    "training.epochs_per_stack": 2,
    "training.batch_size": 16,
    "training.chunk_tokens": 16 * 32,  # so that a hundred sequences make seven chunks
    "evaluation": {"draws": 1, "sequences": 4},
}
SMALL_WINDOWS = SHORT | {
    "rack.stacks": 4,
    "training.window": 32,
    "precision": {"active": "fp32", "trunk": "nvfp4"},
}
DISK = {"use": "disk", "shard_entries": 6}  # chunks have 16: at most instants a part of one waits in memory
KILLED: dict[str, dict[str, Any]] = {
    "disk": {"cache": DISK, "ways": ["instant", "change"], "kills": 5},
    "half the room": {"cache": DISK | {"capacity": BOUNDARIES // 2 * ENTRY}, "ways": ["instant", "change"], "kills": 3},
    "beside": {"cache": DISK, "ways": ["instant", "change"], "kills": 3, "beside": True},
    "lmdb": {"cache": {"use": "lmdb", "batch_entries": 6}, "ways": ["instant"], "kills": 2},
    "wrong entries": {"cache": DISK, "ways": ["instant"], "kills": 1, "plant": True},
}
"""Runs and how they are to be killed, in each of their three phases that have boundaries."""


@pytest.fixture(scope="module")
def survived(tmp_path_factory) -> dict[str, Any]:
    """The outcomes of the killed runs, by name."""
    requests = {
        name: {
            "directory": str(tmp_path_factory.mktemp("killed")),
            "changes": SMALL_WINDOWS | {"cache_backend": each["cache"]},
            "ways": each["ways"],
            "kills": each["kills"],
            "beside": each.get("beside", False),
            "plant": each.get("plant", False),
            "seed": seed,
        }
        for seed, (name, each) in enumerate(KILLED.items())
    }
    command = [sys.executable, "-m", "tests.survival.killed_while_caching", json.dumps(requests)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def phases_of(directory: Path) -> list[tuple[object, ...]]:
    """What does not depend on the clock, or on how a phase came by its boundaries."""
    phases = RunDirectory(directory).read_json("progress.json")["phases"]
    return [(each["name"], each["steps"], each["first_loss"], each["last_loss"]) for each in phases]


@pytest.mark.parametrize("run", [name for name in KILLED if name != "wrong entries"])
def test_a_run_that_is_killed_while_boundaries_are_written_ends_with_the_same_bits(survived, run):
    """Killed again and again, it never reads what the trunk wouldn't compute, and leaves nothing of the cache."""
    *killed, last = survived[run]["lives"]
    assert last["status"] == 0
    assert {life["status"] for life in killed} == {-signal.SIGKILL}
    within = [life for life in killed if life["puts"] and not life["late"]]
    assert len(within) >= {"disk": 12, "half the room": 7, "beside": 7, "lmdb": 4}[run]
    assert {life["phase"] for life in within} == {"stack 1", "stack 2", "stack 3"}
    assert {life["way"] for life in within} == set(KILLED[run]["ways"])
    assert sum(life["reads"] for life in killed) > 20
    directory, undisturbed = Path(survived[run]["killed"]), Path(survived[run]["undisturbed"])
    assert bits(directory) == bits(undisturbed)
    assert phases_of(directory) == phases_of(undisturbed)
    assert not list(directory.glob("cache/*"))


def test_a_wrong_activation_in_the_store_would_be_noticed(survived):
    """The comparison can fail: entries that are wrong in one bit, under whole checksums, end a life that reads them."""
    *killed, last = survived["wrong entries"]["lives"]
    assert last["status"] == WRONG
    assert {life["status"] for life in killed} == {-signal.SIGKILL}


ONE_MASK = SHORT | {"training.masks_per_sample": 1}
SMALL_SHARDS = ONE_MASK | {"cache_backend": {"use": "disk", "shard_entries": 8}}
CACHES = {"disk": SMALL_SHARDS, "lmdb": ONE_MASK | {"cache_backend": {"use": "lmdb", "batch_entries": 8}}}
KEPT = ONE_MASK | {"cache_backend": {"use": "disk", "shard_entries": 8, "keep": "rack"}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Ran:
    """A run whose cache nobody touches."""
    return run_tiny(tmp_path_factory.mktemp("undisturbed"), SMALL_SHARDS)


def stored(directory: Path) -> list[Path]:
    """The files of all stores of a run."""
    return sorted([*directory.glob("cache/*/*.safetensors"), *directory.glob("cache/*/data.mdb")])


def swap_stores(directory: Path) -> int:
    """Let the stores of the two boundaries that a run has kept change places; how many shards this is about."""
    below, above = (directory / "cache" / record.namespace for record in read_records(directory / "cache"))
    both = [(below / path.name, path) for path in above.glob("*.safetensors") if (below / path.name).is_file()]
    for one, other in both:
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    return len(both)


@pytest.mark.parametrize("harm", [flip, cut, delete, replace])
def test_damage_during_a_run_costs_nothing_but_time(tmp_path, undisturbed, harm):
    """Shards that change under the run are found, counted where they are damaged, and their chunks computed again."""
    rng = np.random.default_rng(0)

    def harm_often(event: Event, directory: Path) -> None:
        if isinstance(event, PhaseStarted | PhaseDone) or (isinstance(event, StepDone) and event.step % 2 == 0):
            harm(rng, stored(directory))

    ran = run_tiny(tmp_path, SMALL_SHARDS, telling(harm_often))
    assert ran.losses == undisturbed.losses
    for phase, before in zip(ran.result.phases[1:], undisturbed.result.phases[1:], strict=True):
        # A file that is open when it is deleted can still be read.
        assert harm is delete or phase.boundaries_computed > before.boundaries_computed
        assert (phase.boundaries_damaged > 0) == (harm is not delete)


@define
class GoneOn:
    """A run that broke off halfway through its last phase, and what it came to after that."""

    directory: Path
    losses: list[float]
    """Of the steps of its second life."""
    result: RunResult


def go_on_after(tmp_path: Path, changes: dict[str, Any], harm: Callable[[Path], object]) -> GoneOn:
    """Break a run off, do harm to its directory, and go on with it."""
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    plan, losses = make_plan(setup), list[float]()

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 2" and event.step == 9:
            raise Broken

    with pytest.raises(Broken):
        Engine(setup, plan, registry, interrupt).run()
    directory = tmp_path / "runs" / "tiny"
    harm(directory)

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    result = Engine(setup, plan, registry, note, RunDirectory(directory)).run()
    assert len(losses) == plan.phases[2].steps
    return GoneOn(directory, losses, result)


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory) -> Callable[[str, Harm], GoneOn]:
    """A run whose files were harmed between its two lives, by the backend and the harm."""

    @cache
    def made(backend: str, harm: Harm) -> GoneOn:
        def harm_all(directory: Path) -> None:
            assert stored(directory)
            harm(np.random.default_rng(0), stored(directory))

        return go_on_after(tmp_path_factory.mktemp("harmed"), CACHES[backend], harm_all)

    return made


@pytest.mark.parametrize(
    ("backend", "harm"),
    [
        ("disk", flip),
        ("disk", cut),
        ("disk", delete),
        ("disk", replace),
        ("lmdb", flip),
        ("lmdb", cut),
        ("lmdb", delete),
    ],
)
def test_damage_between_two_lives_costs_nothing_but_time(gone_on, undisturbed, backend, harm):
    """What a run finds changed or gone when it goes on is computed again."""
    run = gone_on(backend, harm)
    assert run.losses == undisturbed.losses[-len(run.losses) :]
    assert run.result.phases[2].boundaries_computed > 0
    assert not list(run.directory.glob("cache/*"))


@pytest.mark.parametrize(
    ("backend", "harm"),
    [
        ("disk", flip),
        ("disk", cut),
        ("lmdb", flip),
        ("lmdb", cut),
    ],
)
def test_damage_between_two_lives_is_counted(gone_on, backend, harm):
    """The phase in which a damaged file is found says so, whether it is found when it is opened or when it is read."""
    assert gone_on(backend, harm).result.phases[2].boundaries_damaged > 0


def test_damage_to_the_boundary_below_is_counted(tmp_path, undisturbed):
    """Bits that flip between two phases are found when the next boundary is made, and are in its phase's count."""

    def harm(event: Event, directory: Path) -> None:
        if isinstance(event, PhaseDone) and event.planned.phase.name == "stack 1":
            assert stored(directory)
            flip(np.random.default_rng(0), stored(directory))

    ran = run_tiny(tmp_path, SMALL_SHARDS, telling(harm))
    assert ran.losses == undisturbed.losses
    assert ran.result.phases[2].boundaries_damaged > 0


def test_shards_of_another_store_are_found_during_a_run(tmp_path, undisturbed):
    """Equal draws have equal keys in each store, and so a shard its name: what a run finds in it isn't what it put."""
    swapped = 0

    def harm(event: Event, directory: Path) -> None:
        nonlocal swapped
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 2" and event.step in (8, 10):
            swapped += swap_stores(directory)

    ran = run_tiny(tmp_path, KEPT, telling(harm))
    assert ran.losses == undisturbed.losses
    assert ran.result.phases[2].boundaries_damaged > 0
    assert swapped > 10


def test_shards_of_another_store_are_found_between_two_lives(tmp_path, undisturbed):
    """A shard belongs to its namespace: under another's it is no shard, though its keys and checksums are whole."""

    def harm(directory: Path) -> None:
        assert swap_stores(directory) > 5

    run = go_on_after(tmp_path, KEPT, harm)
    assert run.losses == undisturbed.losses[-len(run.losses) :]


@pytest.mark.parametrize("room", [0, 6])
def test_a_disk_that_fills_up_costs_nothing_but_time(tmp_path, undisturbed, monkeypatch, room):
    """From the sixth shard on there is room for so many: what goes is counted, and computed again."""
    publish, published = shard.publish, 0

    def full(path: Path, write: Callable[[Path], None]) -> None:
        nonlocal published
        if published >= 6 and len(list(path.parent.glob("*.safetensors"))) >= room:
            raise OSError(errno.ENOSPC, "no more")
        published += 1
        publish(path, write)

    monkeypatch.setattr(shard, "publish", full)
    ran = run_tiny(tmp_path, SMALL_SHARDS)
    assert ran.losses == undisturbed.losses
    for phase in ran.result.phases[1:]:
        assert phase.boundaries_evicted > 0
        assert phase.boundaries_computed > len(ran.setup.corpus.train)


ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path

from stackwise_core.engine.events.events import StepDone
from tests.tiny import run_tiny, telling

disk, directory, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


def fill_up(event, _):
    if isinstance(event, StepDone) and event.planned.phase.name == "stack 1" and event.step == 5:
        try:
            with (disk / "others").open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        except OSError:
            pass


cache = changes["cache_backend"] | {"directory": str(disk)}
ran = run_tiny(directory, changes | {"cache_backend": cache}, telling(fill_up))
print(json.dumps([ran.losses, [phase.boundaries_evicted for phase in ran.result.phases]]))
"""


def test_a_really_full_disk(tmp_path, undisturbed):
    """A file system that others fill up during the run has no room for a boundary: the run goes on, and counts them."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    (disk := tmp_path / "disk").mkdir()
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$0"'
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, disk], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a file system can't be mounted here: {tried.stderr.strip()}")
    command = [sys.executable, "-c", ON_A_SMALL_DISK, disk, tmp_path, json.dumps(SMALL_SHARDS)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mounted} && exec "$@"', disk, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses, evicted = json.loads(done.stdout)
    assert losses == undisturbed.losses
    assert evicted[2] > 0  # its boundary was to be made when the disk was full
