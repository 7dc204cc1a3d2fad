from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve

from stackwise_core.data.draws import Drawer
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.training.boundary import draw_keys, namespace
from stackwise_core.training.events import PhaseDone, PhaseStarted, StepDone
from tests.tiny import Ran, run_tiny

FP32_DISK = {"cache_backend": {"use": "disk", "dtype": "fp32", "shard_entries": 16}}
BF16_DISK = {"cache_backend": {"use": "disk", "shard_entries": 16}}


@pytest.fixture(scope="module", autouse=True)
def _several_chunks():
    """Chunks of 16 sequences, so that a hundred of them make seven."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackwise_core.training.order.CHUNK_TOKENS", 512)
        yield


@pytest.fixture(scope="module")
def recomputed(tmp_path_factory) -> Ran:
    """A run without a cache: every window's boundaries are computed anew, in the same chunks."""
    return run_tiny(tmp_path_factory.mktemp("recomputed"), {"cache_backend": None, "training.window": 64})


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


def test_every_activation_that_a_later_epoch_uses_is_read(tmp_path):
    """Three epochs over two fixed masks: each boundary is computed twice a sample and read three times."""
    ran = run_tiny(tmp_path)
    samples = len(ran.setup.corpus.train)
    first, *rest = ran.result.phases
    assert (first.boundaries_computed, first.boundaries_read) == (0, 0)
    for phase in rest:
        assert (phase.boundaries_computed, phase.boundaries_read) == (2 * samples, 3 * samples)


def test_a_boundary_is_made_from_the_one_below_by_one_stack(tmp_path):
    """In the third phase the first stack never runs: its output is in the boundary below."""
    ran_stacks: list[set[int]] = []

    def watch(ran: Ran) -> None:
        residency = ran.engine._residency
        through = residency.through

        def counted(index, hidden, context):
            ran_stacks[-1].add(index)
            return through(index, hidden, context)

        residency.through = counted
        listener = ran.engine._listener

        def listen(event):
            if isinstance(event, PhaseStarted):
                ran_stacks.append(set())
            if isinstance(event, PhaseDone):
                ran_stacks.append(set())
            listener(event)

        ran.engine._listener = listen

    run_tiny(tmp_path, before=watch)
    assert ran_stacks[0:6:2] == [{0}, {0, 1}, {1, 2}]


def test_bits_do_not_depend_on_where_a_boundary_came_from(tmp_path):
    """In bf16, a boundary made from the one below and one made from the tokens are the same, to the bit."""
    kept = run_tiny(tmp_path / "kept", BF16_DISK)

    def forget_below(ran: Ran) -> None:
        build = ran.engine._boundary
        ran.engine._boundary = lambda planned, below: build(planned, None)

    assert run_tiny(tmp_path / "alone", BF16_DISK, before=forget_below).losses == kept.losses


def test_evicted_boundaries_are_computed_again(tmp_path):
    """A capacity that holds a part of the boundaries costs time, and changes nothing."""
    entry = Layout(tokens=32, d_model=32, dtype="bf16").bytes_per_entry
    small = run_tiny(tmp_path / "small", {"cache_backend": BF16_DISK["cache_backend"] | {"capacity": 2 * 40 * entry}})
    whole = run_tiny(tmp_path / "whole", BF16_DISK)
    assert small.losses == whole.losses
    assert small.result.phases[1].boundaries_computed > whole.result.phases[1].boundaries_computed


def test_damaged_cache_files_are_found_and_computed_again(tmp_path):
    """Bytes flipped in the cache during the run leave its losses as they were."""
    whole = run_tiny(tmp_path / "whole", BF16_DISK)
    rng, damaged = np.random.default_rng(0), 0

    def vandal(ran: Ran) -> None:
        listener = ran.engine._listener

        def listen(event):
            nonlocal damaged
            if isinstance(event, StepDone) and event.step % 5 == 0:
                for path in Path(ran.setup.config.run.directory).glob("tiny/cache/*/*.safetensors"):
                    content = bytearray(path.read_bytes())
                    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                    path.write_bytes(content)
                    damaged += 1
            listener(event)

        ran.engine._listener = listen

    assert run_tiny(tmp_path / "damaged", BF16_DISK, before=vandal).losses == whole.losses
    assert damaged > 10


def test_nothing_of_the_cache_is_left_after_a_run(tmp_path):
    """Boundaries are dropped when no phase needs them any more."""
    ran = run_tiny(tmp_path, FP32_DISK)
    assert not list(ran.directory.glob("cache/**/*.safetensors"))


def test_the_boundary_is_the_trunk_s_own_output(tmp_path):
    """What a phase trains on is the frozen stacks applied to the masked tokens, computed here by hand."""
    seen = []

    def watch(ran: Ran) -> None:
        build = ran.engine._boundary

        def built(planned, below):
            boundary = build(planned, below)
            if boundary is not None:
                read = boundary.read

                def reading(draws, number):
                    hidden = read(draws, number)
                    if len(seen) < 3 * len(boundary.trunk):
                        residency = ran.engine._residency
                        with torch.no_grad():
                            expected = residency.ends.embed_tokens(draws.inputs)
                            context = residency.ends.context(draws.segments)
                            for index in boundary.trunk:
                                expected = residency.stack(index)(expected, context)
                        torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-6)
                        seen.append(len(boundary.trunk))
                    return hidden

                boundary.read = reading
            return boundary

        ran.engine._boundary = built

    run_tiny(tmp_path, before=watch)
    assert set(seen) == {1, 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Ran:
    return run_tiny(tmp_path_factory.mktemp("finished"), {"training.epochs_per_stack": 1})


def names(ran: Ran):
    """Namespaces after each single change of what a boundary depends on, the unchanged one first."""
    residency, layout = ran.engine._residency, ran.engine._layout
    settings = ran.engine._settings()
    yield "same", namespace(residency, (0, 1), layout, settings)
    yield "fewer stacks", namespace(residency, (0,), layout, settings)
    yield "other order", namespace(residency, (1, 0), layout, settings)
    yield "stored format", namespace(residency, (0, 1), evolve(layout, dtype="bf16"), settings)
    yield "sequence length", namespace(residency, (0, 1), evolve(layout, tokens=64), settings)
    for key in settings:
        yield key, namespace(residency, (0, 1), layout, settings | {key: "other"})
    weights = {
        "embedding": residency.ends.embed_tokens.weight,
        "attention": residency.stack(0).layers[0].self_attn.k_proj.weight,
        "norm": residency.stack(1).layers[0].input_layernorm.weight,
    }
    for name, weight in weights.items():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[3] += 1e-6
        yield name, namespace(residency, (0, 1), layout, settings)
        with torch.no_grad():
            weight.copy_(before)


def test_any_change_below_a_boundary_changes_its_name(finished):
    """Weights, precision, tokenizer, layout: each makes another namespace, and the same again makes the same."""
    made = dict(names(finished))
    assert len(set(made.values())) == len(made)
    residency, layout = finished.engine._residency, finished.engine._layout
    assert namespace(residency, (0, 1), layout, finished.engine._settings()) == made["same"]


def test_the_exit_norm_is_not_below_a_boundary(finished):
    """A boundary is read out through it, not made with it."""
    residency, layout, settings = finished.engine._residency, finished.engine._layout, finished.engine._settings()
    before = namespace(residency, (0, 1), layout, settings)
    with torch.no_grad():
        residency.stack(1).norm.weight += 1
        changed = namespace(residency, (0, 1), layout, settings)
        residency.stack(1).norm.weight -= 1
    assert changed == before


def test_keys_tell_ids_masks_and_segments_apart(finished):
    """A key changes with each of the three, and with nothing else."""
    drawer: Drawer = finished.engine._drawer(finished.plan.phases[0])
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
    keys = [draw_keys(variant)[0] for variant in variants]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)
    assert draw_keys(evolve(draws, progress=draws.progress + 1, samples=np.array([5]))) == [keys[0]]
    assert draw_keys(drawer.draw([4, 0, 2], 0))[1] == keys[0]


def test_the_same_again_hits_and_other_masks_miss(finished, monkeypatch, tmp_path):
    """Equal weights and draws are found; draws from another stretch of the schedule are not."""
    engine, planned = finished.engine, finished.plan.phases[2]
    cache = engine._setup.implementations.cache
    store = cache.open(tmp_path, engine._layout, None)
    monkeypatch.setattr(cache, "open", lambda directory, layout, capacity: store)
    first, again = engine._boundary(planned, None), engine._boundary(planned, None)
    lighter = engine._boundary(evolve(planned, phase=evolve(planned.phase, progress=(0.0, 0.5))), None)
    for boundary in (first, again, lighter):
        assert list(boundary.prepare(range(2), 0)) == [0, 1]
    assert [boundary.counts.computed for boundary in (first, again, lighter)] == [32, 0, 32]
