import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_cache.disk import Disk
from stackwise_cache.memory import Memory
from stackwise_cache.options import DiskOptions, MemoryOptions
from stackwise_core.engine.boundary.background import Background
from stackwise_core.engine.boundary.boundary import Boundary, draw_keys
from stackwise_core.engine.boundary.namespace import namespace, provenance
from stackwise_core.engine.draws.draws import Drawer
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.events.events import Event, PhaseDone, PhaseStarted, StepDone
from stackwise_core.engine.phases.phase_boundaries import boundary_layout
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.run_files.stored_boundaries import read_records
from stackwise_masking.options import ConstantOptions
from stackwise_masking.schedules import Constant
from stackwise_precision.floats import Bf16
from tests.tiny import Ran, run_tiny, telling


def layout_of(ran: Ran) -> Layout:
    """The shape of a run's last boundary."""
    return boundary_layout(ran.plan.phases[-1].phase, ran.setup)


FP32_DISK = {"cache_backend": {"use": "disk", "dtype": "fp32", "shard_entries": 16}}
BF16_DISK = {"cache_backend": {"use": "disk", "shard_entries": 16}}


@pytest.fixture(scope="module", autouse=True)
def _several_chunks():
    """Chunks of 16 sequences, so that a hundred of them make seven."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackwise_core.engine.phases.setup.CHUNK_TOKENS", dict.fromkeys(("cpu", "cuda"), 512))
        yield


@pytest.fixture(scope="module")
def recomputed(tmp_path_factory) -> Ran:
    """A run without a cache: every window's boundaries are computed anew, in the same chunks."""
    return run_tiny(tmp_path_factory.mktemp("recomputed"), {"cache_backend": None, "training.window": 64})


@pytest.mark.slow
@pytest.mark.parametrize("cache", [{"use": "memory", "dtype": "fp32"}, FP32_DISK["cache_backend"]])
@pytest.mark.parametrize("window", [64, 1024])
def test_a_cached_run_equals_a_recomputing_one_to_the_bit(tmp_path, recomputed, cache, window):
    """With the cache in fp32, losses and final weights are those of a run that recomputes the trunk."""
    reference = recomputed
    if window != 64:
        reference = run_tiny(tmp_path / "again", {"cache_backend": None, "training.window": window})
    cached = run_tiny(tmp_path / "cached", {"cache_backend": cache, "training.window": window})
    assert cached.losses == reference.losses
    for name in ("embedding", "stacks/000", "stacks/001", "stacks/002"):
        files = [(ran.directory / f"{name}.safetensors").read_bytes() for ran in (cached, reference)]
        assert files[0] == files[1]


@pytest.mark.slow
def test_a_cached_run_with_a_time_input_equals_a_recomputing_one_to_the_bit(tmp_path):
    """The time is in the key, the time's embedding below the boundary: nothing of either gets lost in the cache."""
    time = {"training.time": "input", "training.embedding_lr": 1e-2, "rack.stacks": 2}
    cached = run_tiny(tmp_path / "cached", time)
    recomputed = run_tiny(tmp_path / "recomputed", time | {"cache_backend": None})
    assert cached.losses == recomputed.losses
    embedding = load_file(cached.directory / "embedding.safetensors")
    assert embedding["embed_time.weight"].any()
    for name, tensor in load_file(recomputed.directory / "embedding.safetensors").items():
        assert torch.equal(tensor, embedding[name])


@pytest.mark.slow
def test_every_activation_that_a_later_epoch_uses_is_read(tmp_path):
    """Three epochs over two fixed masks: each boundary is computed twice a sample and read three times."""
    ran = run_tiny(tmp_path)
    samples = len(ran.setup.corpus.train)
    first, *rest = ran.result.phases
    assert (first.boundaries_computed, first.boundaries_read) == (0, 0)
    for phase in rest:
        assert (phase.boundaries_computed, phase.boundaries_read) == (2 * samples, 3 * samples)


@pytest.mark.slow
def test_a_boundary_is_made_from_the_one_below_by_one_stack(tmp_path):
    """In the third phase the first stack never runs: its output is in the boundary below."""
    ran_stacks: list[set[int]] = []

    def watch(ran: Ran) -> None:
        forward = ran.engine.forward
        through = forward.through

        def counted(index, hidden, context):
            ran_stacks[-1].add(index)
            return through(index, hidden, context)

        forward.through = counted
        listener = ran.engine.listener

        def listen(event):
            if isinstance(event, PhaseStarted):
                ran_stacks.append(set())
            if isinstance(event, PhaseDone):
                ran_stacks.append(set())
            listener(event)

        ran.engine.listener = listen

    run_tiny(tmp_path, before=watch)
    assert ran_stacks[0:6:2] == [{0}, {0, 1}, {1, 2}]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp8", "int4"])
def test_bits_do_not_depend_on_where_a_boundary_came_from(tmp_path, dtype):
    """A boundary made from the one below and one made from the tokens are the same, to the bit, in each format."""
    cache = {"cache_backend": {**BF16_DISK["cache_backend"], "dtype": dtype}}
    kept = run_tiny(tmp_path / "kept", cache)

    def forget_below(ran: Ran) -> None:
        above = ran.engine.boundaries.above
        ran.engine.boundaries.above = lambda phase, drawer, below: above(phase, drawer)

    assert run_tiny(tmp_path / "alone", cache, before=forget_below).losses == kept.losses


@pytest.mark.slow
def test_evicted_boundaries_are_computed_again(tmp_path):
    """A capacity that holds a part of the boundaries costs time, and changes nothing."""
    entry = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
    small = run_tiny(tmp_path / "small", {"cache_backend": BF16_DISK["cache_backend"] | {"capacity": 2 * 40 * entry}})
    whole = run_tiny(tmp_path / "whole", BF16_DISK)
    assert small.losses == whole.losses
    assert small.result.phases[1].boundaries_computed > whole.result.phases[1].boundaries_computed


@pytest.mark.slow
def test_damaged_cache_files_are_found_and_computed_again(tmp_path):
    """Bytes flipped in the cache during the run leave its losses as they were."""
    whole = run_tiny(tmp_path / "whole", BF16_DISK)
    rng, damaged = np.random.default_rng(0), 0

    def vandalise(event: Event, directory: Path) -> None:
        nonlocal damaged
        if isinstance(event, StepDone) and event.step % 5 == 0:
            for path in directory.glob("cache/*/*.safetensors"):
                content = bytearray(path.read_bytes())
                content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                path.write_bytes(content)
                damaged += 1

    assert run_tiny(tmp_path / "damaged", BF16_DISK, telling(vandalise)).losses == whole.losses
    assert damaged > 10


@pytest.mark.slow
def test_nothing_of_the_cache_is_left_after_a_run(tmp_path):
    """Boundaries are dropped when no phase needs them any more."""
    ran = run_tiny(tmp_path, FP32_DISK)
    assert not list(ran.directory.glob("cache/**/*.safetensors"))


@pytest.mark.slow
def test_the_boundary_is_the_trunk_s_own_output(tmp_path):
    """What a phase trains on is the frozen stacks applied to the masked tokens, computed here by hand."""
    seen = []

    def watch(ran: Ran) -> None:
        build = ran.engine.boundaries.open

        def built(planned):
            boundary = build(planned)
            if boundary is not None:
                read = boundary.read

                def reading(draws, number):
                    hidden = read(draws, number)
                    if len(seen) < 3 * len(boundary.trunk):
                        forward = ran.engine.forward
                        with torch.no_grad():
                            expected = forward.placement.ends(0).embed_tokens(draws.inputs)
                            context = forward.placement.ends(0).context(draws.segments)
                            for index in boundary.trunk:
                                expected = forward.placement.stack(index)(expected, context)
                        torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-6)
                        seen.append(len(boundary.trunk))
                    return hidden

                boundary.read = reading
            return boundary

        ran.engine.boundaries.open = built

    run_tiny(tmp_path, before=watch)
    assert set(seen) == {1, 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Ran:
    return run_tiny(tmp_path_factory.mktemp("finished"), {"training.epochs_per_stack": 1})


def training_drawer(ran: Ran, phase: int) -> Drawer:
    """Return the drawer of a phase for the training split."""
    return ran.engine.training_drawer(ran.plan.phases[phase])


def name_of(ran: Ran, trunk=(0, 1), layout=None, settings=None, chunk=16) -> str:
    """The namespace of a boundary above some of a run's stacks."""
    layout, settings = layout or layout_of(ran), settings or ran.engine.boundaries.settings
    return namespace(provenance(ran.engine.placement, trunk, layout, chunk, settings))


def names(ran: Ran):
    """Namespaces after each single change of what a boundary depends on, the unchanged one first."""
    forward, layout, directory = ran.engine.forward, layout_of(ran), ran.engine.files
    settings = ran.engine.boundaries.settings
    yield "same", name_of(ran)
    yield "fewer stacks", name_of(ran, (0,))
    yield "other order", name_of(ran, (1, 0))
    yield "stored format", name_of(ran, layout=evolve(layout, dtype="bf16"))
    yield "chunk", name_of(ran, chunk=32)
    yield "sequence length", name_of(ran, layout=evolve(layout, tokens=64))
    for fractions in ((0.5, 1.0), (0.6, 1.0)):
        forward.placement.spec = evolve(ran.setup.spec, time_encoding="learned", time_fractions=fractions)
        yield f"time steps {fractions}", name_of(ran)
    forward.placement.spec = ran.setup.spec
    for key in settings:
        yield key, name_of(ran, settings=settings | {key: "other"})
    loader = forward.placement.loader
    formats, loader.formats = loader.formats, evolve(loader.formats, trunk=Bf16(None))
    yield "precision", name_of(ran)
    loader.formats = formats
    embedding = forward.placement.ends(0).embed_tokens.weight
    before = embedding.detach().clone()
    with torch.no_grad():
        embedding.view(-1)[3] += 1e-6
        yield "embedding", name_of(ran)
        embedding.copy_(before)
    for stack, name in ((0, "layers.0.self_attn.k_proj.weight"), (1, "layers.0.input_layernorm.weight")):
        master = directory.read_stack(stack)
        changed = master[name].clone()
        changed.view(-1)[3] += 1e-6
        directory.write_stack(stack, master | {name: changed})
        yield f"{name} of stack {stack}", name_of(ran)
        directory.write_stack(stack, master)


@pytest.mark.slow
def test_any_change_below_a_boundary_changes_its_name(finished):
    """Weights, precision, tokenizer, layout: each makes another namespace, and the same again makes the same."""
    made = dict(names(finished))
    assert len(set(made.values())) == len(made) > 15
    assert name_of(finished) == made["same"]


def test_keys_tell_ids_masks_and_segments_apart(finished):
    """A key changes with each of the three, and with nothing else."""
    drawer = training_drawer(finished, 0)
    draws = drawer.draw([0], 0)
    ids, segments = draws.inputs.clone(), draws.segments.clone()
    ids[0, 0] += 1
    segments[0, 0] += 1
    variants = [
        draws,
        evolve(draws, inputs=ids),
        evolve(draws, segments=segments),
        evolve(draws, masked=draws.masked[1:]),
        drawer.draw([0], 1),
        drawer.draw([1], 0),
        evolve(drawer, seed=99).draw([0], 0),
    ]
    keys = [draw_keys(variant, with_time=False)[0] for variant in variants]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)
    assert draw_keys(evolve(draws, progress=draws.progress + 1, samples=np.array([5])), with_time=False) == [keys[0]]
    assert draw_keys(drawer.draw([4, 0, 2], 0), with_time=False)[1] == keys[0]


def test_time_is_part_of_a_key_where_the_network_is_told(finished):
    """Two draws that differ in nothing but their time are two boundaries only then."""
    draws = training_drawer(finished, 0).draw([0, 1], 0)
    later = evolve(draws, fraction=draws.fraction + 1e-9)
    assert draw_keys(draws, with_time=False) == draw_keys(later, with_time=False)
    assert not set(draw_keys(draws, with_time=True)) & set(draw_keys(later, with_time=True))
    boundary = finished.engine.boundaries.above(finished.plan.phases[1].phase, training_drawer(finished, 1))
    assert boundary._keys(draws) == boundary._keys(later)
    try:
        finished.engine.placement.spec = evolve(finished.setup.spec, time_encoding="sinusoidal")
        assert boundary._keys(draws) != boundary._keys(later)
    finally:
        finished.engine.placement.spec = finished.setup.spec


STORES = {
    "window": lambda directory, layout: None,
    "memory": lambda directory, layout: Memory(MemoryOptions()).open(directory, layout, None),
    "disk": lambda directory, layout: Disk(DiskOptions(shard_entries=8)).open(directory, layout, None),
}


def boundary_over_two_chunks(
    finished: Ran, directory: Path, store: str, layout: Layout | None = None, *, beside: bool = False
) -> tuple[Boundary, Drawer]:
    """The third phase's boundary with its first two chunks made, and what made their draws."""
    engine, drawer, layout = finished.engine, training_drawer(finished, 2), layout or layout_of(finished)
    kept = STORES[store](directory, layout)
    boundary = Boundary((0, 1), engine.forward, drawer, engine.order, kept, layout, beside=beside)
    assert list(boundary.fill_window([0, 1], 0)) == [(done, 4) for done in (1, 2, 3, 4)]
    return boundary, drawer


@pytest.mark.parametrize("store", STORES)
def test_a_boundary_under_other_masks_is_refused(finished, tmp_path, store, monkeypatch):
    """A loss over masks that its boundary didn't have would see what it asks for: an attempt fails, and ends."""
    boundary, drawer = boundary_over_two_chunks(finished, tmp_path, store)
    pass_trunk, computed = boundary._pass_trunk, []

    def counted(parts, entries):
        computed.append(len(parts))
        assert len(computed) < 20, "it would go on for ever"
        return pass_trunk(parts, entries)

    monkeypatch.setattr(boundary, "_pass_trunk", counted)
    own = drawer.draw([3, 20, 5], 0)
    heavier = evolve(drawer, noise=Noise(Constant(ConstantOptions(0.97)))).draw([3, 20, 5], 0)
    lighter = evolve(drawer, noise=Noise(Constant(ConstantOptions(0.03)))).draw([3, 20, 5], 0)
    one_of_three = evolve(own, inputs=own.inputs.clone())
    one_of_three.inputs[1] = lighter.inputs[1]
    for leak in (lighter, heavier, one_of_three, drawer.draw([3, 20, 5], 1), evolve(own, masked=lighter.masked)):
        with pytest.raises(StackwiseError, match="masks aren't those that its boundary was made under"):
            boundary.read(leak, 0)
    assert boundary.read(own, 0).shape == (3, 32, 32)


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_batch_is_whole_after_part_of_it_was_lost(finished, tmp_path, store):
    """What the store has no more is computed again, beside what it has, in the same places."""
    boundary, drawer = boundary_over_two_chunks(finished, tmp_path, store)
    draws = drawer.draw([3, 20, 5], 0)
    whole = boundary.read(draws, 0)
    boundary._store.drop()
    boundary._seen.clear()
    assert list(boundary.fill_window([1], 0)) == [(1, 2), (2, 2)]
    boundary.counts.computed = 0
    assert torch.equal(boundary.read(draws, 0), whole)
    assert boundary.counts.computed == 16


def threads() -> list[str]:
    """Names of the threads that boundaries have."""
    return [each.name for each in threading.enumerate() if each.name.startswith("stackwise-boundary")]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("store", STORES)
def test_reading_ahead_gives_the_bits_of_reading(finished, tmp_path, store, dtype):
    """In any order, announced or not, more of them than there are slots; no thread outlives it, and counts agree."""
    layout = evolve(layout_of(finished), dtype=dtype)
    inline, drawer = boundary_over_two_chunks(finished, tmp_path / "inline", store, layout)
    ahead, _ = boundary_over_two_chunks(finished, tmp_path / "ahead", store, layout, beside=True)
    batches = [drawer.draw(samples, 0) for samples in ([3, 20, 5], [1, 2], [31, 0, 8], [9, 9, 9], [17, 4, 6])]
    for draws in batches[1:]:
        ahead.prefetch(draws)
        inline.prefetch(draws)
    given = [(ahead.read(batches[place], 0), inline.read(batches[place], 0)) for place in (0, 1, 4, 3, 2, 0)]
    for one, other in given:  # compared at the end: what was given is no slot that is filled again
        assert torch.equal(one, other)
    assert ahead.counts == inline.counts
    assert threads()
    for draws in batches:
        ahead.prefetch(draws)
    ahead.rest()
    assert not threads()
    assert torch.equal(ahead.read(batches[0], 0), given[0][1])
    ahead.close()
    assert not threads()


@pytest.mark.parametrize("store", STORES)
def test_masks_are_refused_and_losses_mended_ahead_as_well(finished, tmp_path, store):
    """The main thread finds out what isn't there for a batch that was announced, and computes it again."""
    boundary, drawer = boundary_over_two_chunks(finished, tmp_path, store, beside=True)
    draws, leak = drawer.draw([3, 20, 5], 0), drawer.draw([3, 20, 5], 1)
    whole = boundary.read(draws, 0)
    boundary.rest()
    if store != "window":
        boundary._store.drop()
        boundary.counts.computed = 0
        boundary.prefetch(draws)
        assert torch.equal(boundary.read(draws, 0), whole)
        assert boundary.counts.computed == 32
    boundary.prefetch(leak)
    with pytest.raises(StackwiseError, match="masks aren't those that its boundary was made under"):
        boundary.read(leak, 0)
    boundary.close()


@pytest.mark.parametrize("method", ["put", "read_into"])
def test_an_error_of_a_store_arrives_in_the_main_thread(finished, tmp_path, method, monkeypatch):
    """Whether it comes while entries are put or while they are read ahead; the thread ends."""

    def full(*arguments):
        raise OSError("the store is at fault")

    engine, drawer, layout = finished.engine, training_drawer(finished, 2), layout_of(finished)
    kept = STORES["memory"](tmp_path, layout)
    boundary = Boundary((0, 1), engine.forward, drawer, engine.order, kept, layout, beside=True)
    if method == "put":
        monkeypatch.setattr(kept, "put", full)
        with pytest.raises(OSError, match="at fault"):
            list(boundary.fill_window([0, 1], 0))
    else:
        list(boundary.fill_window([0, 1], 0))
        monkeypatch.setattr(kept, "read_into", full)
        draws = drawer.draw([3, 20, 5], 0)
        boundary.prefetch(draws)
        with pytest.raises(OSError, match="at fault"):
            boundary.read(draws, 0)
        boundary.rest()
    assert not threads()


def test_a_fill_that_stops_leaves_no_thread_and_goes_on_later(finished, tmp_path):
    """A run that is asked to stop leaves the window in its middle; what it has put serves the next attempt."""
    whole, drawer = boundary_over_two_chunks(finished, tmp_path / "whole", "memory")
    engine, layout = finished.engine, layout_of(finished)
    kept = STORES["memory"](tmp_path, layout)
    boundary = Boundary((0, 1), engine.forward, drawer, engine.order, kept, layout, beside=True)
    filling = boundary.fill_window([0, 1], 0)
    assert [next(filling) for _ in range(3)] == [(1, 4), (2, 4), (3, 4)]
    filling.close()
    assert not threads()
    list(boundary.fill_window([0, 1], 0))
    draws = drawer.draw([3, 20, 5], 0)
    assert torch.equal(boundary.read(draws, 0), whole.read(draws, 0))
    boundary.close()


def beside(ran: Ran) -> None:
    """For ``before``: have a run's boundaries read ahead and written behind, as on a GPU."""
    above = ran.engine.boundaries.above

    def threaded(*arguments, **named):
        boundary = above(*arguments, **named)
        boundary._beside = True
        boundary._background = Background(torch.device("cpu"), has_thread=True)
        return boundary

    ran.engine.boundaries.above = threaded


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, {"use": "memory"}, {"use": "disk", "shard_entries": 16}, {"use": "lmdb"}])
@pytest.mark.parametrize("capacity", [None, 80])
def test_a_run_beside_a_thread_has_the_bits_and_counts_of_one_without(tmp_path, cache, capacity):
    """With each store, with room for all and for some of it; no thread outlives the run."""
    entry = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
    limit = {} if capacity is None else {"capacity": capacity * entry}
    changes = {"cache_backend": None if cache is None else cache | limit, "training.window": 64}
    inline = run_tiny(tmp_path / "inline", changes)
    threaded = run_tiny(tmp_path / "beside", changes, before=beside)
    assert threaded.losses == inline.losses
    kinds = ["wanted", "found", "repeated", "computed", "read", *(["evicted"] if capacity is None else [])]
    for one, other in zip(threaded.result.phases, inline.result.phases, strict=True):
        for kind in kinds:  # what is read a batch earlier is evicted a batch later
            assert getattr(one, f"boundaries_{kind}") == getattr(other, f"boundaries_{kind}"), kind
    assert not threads()


@pytest.mark.slow
def test_a_device_with_memory_of_its_own_has_the_same_bits_wherever_the_cache_is(tmp_path, device):
    """All of it there, a part of it, none; a window there or not; on disk. (With --device cuda, or stand-in.)"""
    if device.type == "cpu":
        pytest.skip("a CPU has no memory of its own")
    entry = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
    memory = {"use": "memory", "dtype": "bf16"}
    caches = [memory, memory | {"device_memory": 40 * entry}, memory | {"device_memory": 0}, BF16_DISK["cache_backend"]]

    def losses(number: int, cache: dict, room: bool) -> list[float]:
        budget = {"training.window": 64, "training.residency": "memory"}

        def without_room(ran: Ran) -> None:
            ran.engine.boundaries._device_room = 0

        changes = budget | {"cache_backend": cache, "training.memory_budget": "1 GB"}
        return run_tiny(tmp_path / f"{number} {room}", changes, None if room else without_room).losses

    found = [losses(number, cache, room) for number, cache in enumerate(caches) for room in (True, False)]
    assert all(each == found[0] for each in found[1:])


@pytest.mark.slow
def test_only_the_boundaries_in_use_are_kept_by_default(tmp_path):
    """While a boundary is made from the one below there are two, once it is whole it alone, and after the run none."""
    held: dict[str, list[int]] = {}

    def count(event: Event, directory: Path) -> None:
        if isinstance(event, StepDone):
            held.setdefault(event.planned.phase.name, []).append(len(list(directory.glob("cache/*/"))))

    ran = run_tiny(tmp_path, FP32_DISK | {"rack.stacks": 4}, telling(count))
    assert {name: (max(counts), counts[-1]) for name, counts in held.items()} == {
        "stack 0": (0, 0),
        "stack 1": (1, 1),
        "stack 2": (2, 1),
        "stack 3": (2, 1),
    }
    assert not list(ran.directory.glob("cache/*"))


@pytest.mark.slow
def test_boundaries_of_as_many_phases_are_kept_as_asked(tmp_path):
    """Of three phases' boundaries the last two stay on disk, whole, under the names of what they were made by."""
    cache = FP32_DISK["cache_backend"] | {"keep": "rack", "keep_time_steps": 2}
    ran = run_tiny(tmp_path, {"cache_backend": cache, "rack.stacks": 4, "training.epochs_per_stack": 1})
    engine = ran.engine
    left = {path.name for path in ran.directory.glob("cache/*") if path.is_dir()}
    trunks = {name_of(ran, range(top)): top for top in (2, 3)}
    assert left == set(trunks) == {record.namespace for record in read_records(ran.directory / "cache")}
    draws = training_drawer(ran, 3).draw(range(16), 0)
    for name, top in trunks.items():
        store = Disk(DiskOptions()).open(ran.directory / "cache" / name, layout_of(ran), None)
        assert store.stats().entries == len(ran.setup.corpus.train)
        with torch.no_grad():
            hidden = engine.forward.embed(0, draws.inputs, draws.fraction)
            context = engine.forward.context(draws.segments)
            for index in range(top):
                hidden = engine.forward.through(index, hidden, context)
        assert torch.equal(store.get(draw_keys(draws, with_time=False)), hidden)


def test_the_same_again_hits_and_other_masks_miss(finished, monkeypatch, tmp_path):
    """Equal weights and draws are found; draws from another stretch of the schedule are not."""
    engine, planned = finished.engine, finished.plan.phases[1]
    cache = engine.setup.implementations.cache
    store = cache.open(tmp_path, layout_of(finished), None)
    monkeypatch.setattr(cache, "open", lambda directory, layout, capacity: store)
    lighter = evolve(planned, phase=evolve(planned.phase, progress=(0.0, 0.5)))
    first, again, lighter = (
        engine.boundaries.above(each.phase, engine.training_drawer(each)) for each in (planned, planned, lighter)
    )
    passes = [len(list(boundary.fill_window(range(2), 0))) for boundary in (first, again, lighter)]
    assert passes == [2, 0, 2]
    assert [boundary.counts.computed for boundary in (first, again, lighter)] == [32, 0, 32]
