import shutil
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_core.config.source_run import SourceRun
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_core.interfaces.routing import BandRoute
from stackwise_core.run_files.plan_file import PlanFile, RackRecord
from tests.tiny import Ran, run_tiny

SPEC = RackSpec(blocks=(1, 1, 1, 1), vocab_size=40, seq_len=24, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48)
STILL = {"training.block_lr": 0.0, "training.embedding_lr": 0.0, "training.steps_per_stack": 1}


def source_run(blocks=(1, 1), exits=(0, 1), tokenizer="ab", **rack) -> SourceRun:
    spec = evolve(SPEC, blocks=tuple(blocks), **rack)
    plan = PlanFile(
        rack=RackRecord(spec=spec, parameters=spec.parameters),
        tokenizer=tokenizer,
        corpus="",
        routes=(BandRoute((0,), (0.0, 1.0)),),
        exits=tuple(exits),
        phases=(),
    )
    return SourceRun(Path("runs/first"), plan)


def test_blocks_are_matched_from_the_bottom_or_the_top():
    """A rack that grows up has the source's stacks at the tokens, one that grows down at the head."""
    up, down = (Source.of(source_run(), SPEC, grows) for grows in ("up", "down"))
    assert (up.stacks, up.exits) == ({0: range(0, 1), 1: range(1, 2)}, {0, 1})
    assert (down.stacks, down.exits) == ({2: range(0, 1), 3: range(1, 2)}, {2, 3})


def test_blocks_are_regrouped_and_keep_the_exits_that_still_are_exits():
    """Of four one-block stacks, two of two; the exits within them are gone."""
    spec = evolve(SPEC, blocks=(2, 2, 2))
    source = Source.of(source_run((1, 1, 1, 1), (0, 1, 3)), spec, "up")
    assert (source.stacks, source.exits) == ({0: range(0, 2), 1: range(2, 4)}, {0, 1})
    assert Source.of(source_run((2, 2), (0, 1)), evolve(SPEC, blocks=(1,) * 5), "up").exits == {1, 3}


def test_what_does_not_fit_is_refused():
    """Too many blocks, and blocks that end within a stack."""
    with pytest.raises(UsageError, match=r'"runs/first" has 5 blocks, and this rack 4\. Raise rack\.stacks'):
        Source.of(source_run((1,) * 5), SPEC, "up")
    for grows, stack in (("up", 1), ("down", 0)):
        with pytest.raises(UsageError, match=f"3 blocks, which end within stack {stack} of this rack"):
            Source.of(source_run((1, 1, 1)), evolve(SPEC, blocks=(2, 2)), grows)


@pytest.mark.parametrize(
    ("run", "spec", "message"),
    [
        ({"tokenizer": "cd"}, {}, r"another tokenizer than data\.tokenizer"),
        ({"ends": "per_stack"}, {}, "has an embedding and a head for each stack, and this rack has one for all"),
        ({"time_encoding": "sinusoidal"}, {}, "with another time input"),
        (
            {"time_encoding": "sinusoidal"},
            {"time_encoding": "learned", "time_fractions": (0.5, 1.0)},
            "another time input",
        ),
        (
            {"time_encoding": "learned", "time_fractions": (1.0,)},
            {"time_encoding": "learned", "time_fractions": (0.5, 1.0)},
            "another time input",
        ),
    ],
)
def test_ends_for_another_rack_are_refused(run, spec, message):
    """An embedding means nothing under another tokenizer, time input or division of the rack."""
    source = Source.of(source_run(**run), SPEC, "up")
    with pytest.raises(UsageError, match=rf'rack\.init_from = "runs/first" .*{message}'):
        source.check_ends(evolve(SPEC, **spec), "ab")


def test_ends_that_fit_are_taken():
    """The same tokenizer, a time input that is new or the same, and ends of their own where the rack has such."""
    learned = {"time_encoding": "learned", "time_fractions": (0.5, 1.0)}
    for run, spec in (({}, {}), ({}, learned), (learned, learned), ({"ends": "per_stack"}, {"ends": "per_stack"})):
        Source.of(source_run(**run), SPEC, "up").check_ends(evolve(SPEC, **spec), "ab")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Ran:
    """Two stacks, built one on the other."""
    return run_tiny(tmp_path_factory.mktemp("first"), {"rack.stacks": 2, "training.epochs_per_stack": 1})


def start(tmp_path, source: Ran, mode, **changes) -> Ran:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return run_tiny(tmp_path, {"rack.init_from": str(source.directory), "trainer_mode": mode} | changes)


def same_files(one: Path, other: Path, names: list[str]) -> bool:
    return all(
        (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes() for name in names
    )


@pytest.fixture(scope="module")
def second(first, tmp_path_factory) -> Ran:
    """Two more, over the frozen two of the first."""
    return start(
        tmp_path_factory.mktemp("second"), first, {"use": "fused"}, rack__stacks=4, training__epochs_per_stack=1
    )


@pytest.mark.slow
def test_more_stacks_are_built_on_what_was_given(first, second):
    """Phases for the new ones only; what was given is what it was, to the bit, and so are its likelihoods."""
    assert [planned.phase.trains for planned in second.plan.phases] == [{2}, {3}]
    assert not any(planned.phase.embedding for planned in second.plan.phases)
    assert same_files(first.directory, second.directory, ["embedding", "stacks/000", "stacks/001"])
    assert [likelihood.depth for likelihood in second.result.likelihoods] == [1, 2, 3, 4]
    assert second.result.likelihoods[:2] == first.result.likelihoods


@pytest.mark.slow
def test_a_third_mode_goes_on_where_the_second_stopped(tmp_path, second):
    """Before it has learned anything, an end-to-end run has the second's likelihood, to the bit."""
    third = start(tmp_path, second, {"use": "end_to_end"}, rack__stacks=4, **STILL)
    assert third.result.likelihoods == second.result.likelihoods[-1:]
    names = ["embedding", *(f"stacks/{stack:03d}" for stack in range(4))]
    assert same_files(second.directory, third.directory, names)


@pytest.mark.slow
def test_a_third_mode_trains_what_it_was_given(tmp_path, second):
    """Its first loss is far below that of a rack of new weights, and every weight moves on."""
    third = start(tmp_path / "third", second, {"use": "end_to_end"}, rack__stacks=4, training__steps_per_stack=5)
    fresh = run_tiny(
        tmp_path / "fresh", {"trainer_mode": {"use": "end_to_end"}, "rack.stacks": 4, "training.steps_per_stack": 1}
    )
    assert third.losses[0] < fresh.losses[0] - 0.4
    for name in ("embedding", *(f"stacks/{stack:03d}" for stack in range(4))):
        before, after = (load_file(ran.directory / f"{name}.safetensors") for ran in (second, third))
        assert not any(torch.equal(before[key], after[key]) for key in before if key != "norm.weight")


def test_a_copy_of_a_given_stack_is_that_stack(tmp_path, first):
    """Copies begin from what was given where there is nothing else beside them."""
    grown = start(tmp_path, first, {"use": "fused", "start": "copy"}, rack__stacks=3, **STILL)
    assert same_files(first.directory, grown.directory, ["stacks/001"])
    assert (grown.directory / "stacks/002.safetensors").read_bytes() == (
        first.directory / "stacks/001.safetensors"
    ).read_bytes()


def test_a_rack_that_grows_down_has_the_given_stacks_on_top(tmp_path, first):
    """They are frozen there, and read out as before; stacks of zero output below them change nothing."""
    mode = {"use": "progressive", "building": "prepend", "start": "zero_output"}
    grown = start(tmp_path / "grown", first, mode, rack__stacks=4, **STILL)
    assert [(planned.phase.path, planned.phase.trains) for planned in grown.plan.phases] == [
        ((1, 2, 3), {1}),
        ((0, 1, 2, 3), {0}),
    ]
    for given, stack in ((0, 2), (1, 3)):
        assert (first.directory / f"stacks/{given:03d}.safetensors").read_bytes() == (
            grown.directory / f"stacks/{stack:03d}.safetensors"
        ).read_bytes()
    (whole,) = grown.result.likelihoods  # below the given exits there is more now than when they were trained
    assert (whole.depth, whole.nats_per_token) == (4, first.result.likelihoods[-1].nats_per_token)


def logits(ran: Ran) -> torch.Tensor:
    forward, ids = ran.engine.forward, torch.arange(32)[None]
    hidden, context = forward.embed(0, ids, torch.zeros(1)), forward.context(torch.ones(1, 32))
    top = ran.setup.spec.stacks - 1
    with torch.no_grad():
        for index in range(top + 1):
            hidden = forward.through(index, hidden, context)
        return forward.placement.ends(top).logits(hidden, forward.placement.stack(top).norm)


@pytest.mark.slow
def test_regrouped_blocks_are_the_same_model(tmp_path):
    """Four stacks of one block become two of two: the same logits, and the same likelihood."""
    changes = {"rack.stacks": 2, "rack.blocks_per_stack": 2, "training.epochs_per_stack": 1}
    layers = run_tiny(tmp_path / "layers", changes | {"trainer_mode": {"use": "layerwise"}})
    assert layers.setup.spec.blocks == (1, 1, 1, 1)
    blocks = start(tmp_path / "blocks", layers, {"use": "end_to_end"}, **changes | STILL)
    assert torch.equal(logits(blocks), logits(layers))
    (whole,) = blocks.result.likelihoods
    assert whole.nats_per_token == layers.result.likelihoods[-1].nats_per_token


def test_a_rack_that_is_whole_has_nothing_to_build(tmp_path, first):
    """The message says what to do with it."""
    with pytest.raises(UsageError, match=r"init_from brings all 2\. Raise rack\.stacks, or go on with"):
        start(tmp_path, first, {"use": "blockwise"}, rack__stacks=2)


@pytest.mark.slow
def test_ends_of_their_own_are_given_to_their_stacks(tmp_path):
    """A banded rack grows by a band: the given stacks keep their embeddings and heads, the new one begins with new."""
    mode = {"use": "banded", "shared": "per_stack", "cycles": 1}
    changes = {"rack.tie_embeddings": False, "training.epochs_per_stack": 1, "rack.stacks": 2}
    two = run_tiny(tmp_path / "two", changes | {"trainer_mode": mode})
    still = STILL | {"training.head_lr": 0.0, "rack.stacks": 3, "rack.tie_embeddings": False}
    three = start(tmp_path / "three", two, mode, **still)
    kinds = ("", ".embedding", ".head")
    assert same_files(
        two.directory, three.directory, [f"stacks/{stack:03d}{kind}" for stack in (0, 1) for kind in kinds]
    )
    new = load_file(three.directory / "stacks/002.embedding.safetensors")
    assert not torch.equal(new["embed_tokens.weight"], three.engine.placement.ends(1).embed_tokens.weight)


def test_shared_ends_are_given_to_every_stack(tmp_path, first):
    """A banded rack with ends of its own for each stack begins them all from the one pair."""
    mode = {"use": "banded", "shared": "per_stack", "cycles": 1}
    banded = start(tmp_path, first, mode, rack__stacks=2, **STILL)
    for stack in range(2):
        assert (banded.directory / f"stacks/{stack:03d}.embedding.safetensors").read_bytes() == (
            first.directory / "embedding.safetensors"
        ).read_bytes()


@pytest.mark.parametrize("name", ["stacks/001.safetensors", "embedding.safetensors"])
def test_a_damaged_source_is_named_and_refused(tmp_path, first, name):
    """A flipped bit in a run that is started from is found before anything trains."""
    copied = tmp_path / "copied"
    shutil.copytree(first.directory, copied)
    content = bytearray((copied / name).read_bytes())
    content[-9] ^= 4
    (copied / name).write_bytes(content)
    with pytest.raises(StackwiseError, match=rf"{name}: damaged"):
        run_tiny(tmp_path, {"rack.init_from": str(copied), "trainer_mode": {"use": "end_to_end"}, "rack.stacks": 2})
    (copied / name).unlink()
    with pytest.raises(StackwiseError, match=rf"{name}: missing"):
        run_tiny(tmp_path, {"rack.init_from": str(copied), "trainer_mode": {"use": "end_to_end"}, "rack.stacks": 2})
