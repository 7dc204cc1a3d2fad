"""A finished run's rack as a module, against transformers' Llama and hand-written loops over its files."""

import pytest
import torch

from stackwise_core import load_rack
from stackwise_core.engine.evaluation import loaded_rack
from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
from stackwise_core.engine.phases.setup import RackParts
from stackwise_core.engine.rack.rack import Ends, Stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError
from tests.llama import llama_like
from tests.same_numbers import assert_same_numbers
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

RUNS = {
    "sequential": {},
    "banded": {"trainer_mode": {"use": "banded", "cycles": 1}},
    "streamed": {"training.residency": "stream"},
    "quantised": {"precision": {"active": "fp32", "trunk": "nf4"}},
    "time": {"training.time": "input"},
    "clm": {"objective": "clm"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by name."""
    parent = tmp_path_factory.mktemp("racks")
    return {name: run_tiny(parent, {"run.name": name, **changes}) for name, changes in RUNS.items()}


@pytest.fixture(scope="module")
def racks(runs) -> dict[str, LoadedRack]:
    return {name: load_rack(ran.directory) for name, ran in runs.items()}


def some_ids(rack: LoadedRack, masked: float = 0.5, sequences: int = 3) -> torch.Tensor:
    """Ids [B, T] of which a share is masked, evenly spaced."""
    ids = torch.randint(97, 123, (sequences, rack.seq_len), generator=torch.Generator().manual_seed(5))
    ids[:, : round(masked * rack.seq_len)] = rack.tokenizer.mask_id
    return ids


@torch.no_grad()
def by_hand(rack: LoadedRack, ids: torch.Tensor, path, fraction: float) -> torch.Tensor:
    """Logits from the files, module by module."""
    directory, spec = RunDirectory(rack.run.path), rack.spec
    ends = Ends(spec, rack.tokenizer.mask_id)
    ends.load_state_dict(directory.read_ends(spec)[None])
    hidden = ends.embed(ids, torch.full((len(ids),), fraction, dtype=torch.float64))
    for index in path:
        stack = Stack(spec, index)
        stack.load_state_dict(directory.read_stack(index))
        hidden = stack.eval()(hidden, ends.context(torch.ones_like(ids)))
    return ends.logits(hidden, stack.norm)


@pytest.mark.parametrize("name", ["sequential", "clm"])
def test_logits_are_those_of_transformers(racks, name):
    """With the run's weights transformers' Llama gives the same bits, with causal attention and without."""
    rack = racks[name]
    directory, ids = RunDirectory(rack.run.path), some_ids(racks[name])
    model = llama_like(rack.spec, rack.spec.vocab_size)
    model.config.is_causal = rack.causal
    for layer in model.model.layers:
        layer.self_attn.is_causal = rack.causal
    weights = {"model.embed_tokens.weight": directory.read_ends(rack.spec)[None]["embed_tokens.weight"]}
    for index in range(rack.spec.stacks):
        stack = directory.read_stack(index)
        weights["model.norm.weight"] = stack.pop("norm.weight")
        weights |= {f"model.layers.{index}{name.removeprefix('layers.0')}": each for name, each in stack.items()}
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        assert_same_numbers(rack(ids), model(ids).logits)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_can_be_read_out_at_every_trained_depth(racks, depth):
    """Logits after so many stacks are those of the files' first ones."""
    rack = racks["sequential"]
    ids = some_ids(rack)
    assert rack.depths == (1, 2, 3)
    assert torch.equal(rack(ids, depth=depth), by_hand(rack, ids, range(depth), 0.5))


def test_a_banded_rack_takes_each_sequence_through_its_own_stack(racks):
    """Sequences of other mask fractions in one batch pass other stacks, found from the ids themselves."""
    rack = racks["banded"]
    ids = torch.cat([some_ids(rack, masked, 1) for masked in (0.1, 0.5, 0.95)])
    together = rack(ids)
    for row, stack in enumerate(range(3)):
        assert rack.routes[stack].serves(float((ids[row] == rack.tokenizer.mask_id).double().mean()))
        assert torch.allclose(together[row], by_hand(rack, ids[row : row + 1], [stack], 0.0)[0], atol=1e-5)


def test_a_time_input_is_told_the_share_that_is_masked(racks):
    """It comes from the ids where it isn't given, and another one gives other logits."""
    rack = racks["time"]
    ids = some_ids(rack, 0.25)
    assert torch.equal(rack(ids), by_hand(rack, ids, range(3), 0.25))
    assert not torch.equal(rack(ids), rack(ids, fraction=torch.full((3,), 0.9)))


def test_a_streamed_rack_holds_no_stack_and_computes_the_same(runs, monkeypatch):
    """It reads one stack after another, if that is asked for or they don't fit."""
    assert len(load_rack(runs["streamed"].directory).stacks) == 3  # there is room for them
    streamed = load_rack(runs["streamed"].directory, stream=True)
    assert len(streamed.stacks) == 0
    ids = some_ids(streamed)
    assert torch.equal(streamed(ids), by_hand(streamed, ids, range(3), 0.5))
    assert not any(index in streamed.run.forward.placement for index in range(3))
    bytes_of_all = 4 * sum(streamed.spec.stack_parameters(index) for index in range(3))
    for budget, held in ((bytes_of_all - 1, 0), (bytes_of_all, 3)):
        monkeypatch.setattr(RackParts, "memory_budget", budget)
        assert len(load_rack(runs["streamed"].directory).stacks) == held


def test_predictions_leave_the_mask_token_out(racks):
    """At chosen positions they are the logits, but the mask's, which can't stand anywhere."""
    rack = racks["sequential"]
    ids, where = some_ids(rack), torch.tensor([0, 7, 40])
    found = rack.predict(ids, torch.ones_like(ids), 0.5, where)
    expected = rack(ids).flatten(0, 1)[where]
    mask = rack.tokenizer.mask_id
    assert torch.all(found[:, mask] == -torch.inf)
    expected[:, mask] = -torch.inf
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(rack.at_depth(3).predict(ids, torch.ones_like(ids), 0.5, where), found)


def test_documents_of_a_sequence_see_nothing_of_each_other(racks):
    """What stands in one changes no logit of the other."""
    rack = racks["sequential"]
    ids = some_ids(rack, sequences=1)
    segments = torch.ones_like(ids)
    segments[:, 20:] = 2
    before, ids = rack(ids, segments), ids.clone()
    ids[:, 25] = 65
    after = rack(ids, segments)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])
    assert not torch.equal(rack(ids)[:, :20], after[:, :20])


def test_another_precision(runs):
    """A quantised trunk is loaded from its masters at fp32, and full weights at nf4, all stacks alike."""
    as_it_was = load_rack(runs["quantised"].directory)
    in_full = load_rack(runs["quantised"].directory, precision="fp32")
    ids = some_ids(in_full)
    assert torch.equal(in_full(ids), by_hand(in_full, ids, range(3), 0.5))
    assert not torch.equal(as_it_was(ids), in_full(ids))
    quantised = load_rack(runs["sequential"].directory, precision="nf4")
    assert sum(type(layer).__name__ == "Linear4bit" for layer in quantised.stacks.modules()) == 3 * 7


def test_its_evaluation_is_the_runs_own(runs, racks):
    """Every bound is the run's to the bit, also of a banded rack, which goes on giving the same logits."""
    for name, ran in runs.items():
        ids = some_ids(racks[name])
        before = racks[name](ids)
        assert racks[name].evaluate() == list(ran.result.likelihoods)
        assert torch.equal(racks[name](ids), before)


def test_its_weights_stay_as_they_are(racks):
    """Nothing trains, no graph is kept, and it is neither moved nor cast."""
    rack = racks["sequential"]
    assert sum(parameter.numel() for parameter in rack.parameters()) == rack.spec.parameters
    assert not any(parameter.requires_grad for parameter in rack.parameters())
    assert not rack(some_ids(rack)).requires_grad
    for change in (rack.half, lambda: rack.to("cpu")):
        with pytest.raises(UsageError, match="name device and precision when it is loaded"):
            change()


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.zeros(1, 33, dtype=torch.int64), r"expected ids \[sequences, up to 32 tokens\], found \[1, 33\]"),
        (torch.zeros(4, dtype=torch.int64), r"found \[4\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"found \[1, 0\]"),
        (torch.full((1, 4), 258), "expected ids from 0 to 257"),
        (torch.full((1, 4), -1), "expected ids from 0 to 257"),
        (torch.zeros(1, 4), r"expected ids as whole numbers, found torch\.float32"),
        ([[1, 2]], "expected ids as a tensor, found list"),
    ],
)
def test_ids_that_cannot_be_are_refused(racks, ids, said):
    """The message says what the rack can take."""
    with pytest.raises(UsageError, match=said):
        racks["sequential"](ids)


def test_a_depth_that_cannot_be_read_is_refused(racks):
    """The message names those that can; a banded rack has one."""
    with pytest.raises(UsageError, match=r"depth 4: .* can be read out at 1, 2, 3\."):
        racks["sequential"].at_depth(4)
    with pytest.raises(UsageError, match=r"depth 1: .* can be read out at 3\."):
        racks["banded"].at_depth(1)


def test_bands_of_a_banded_rack_are_its_own(racks):
    """Others can't be asked for."""
    with pytest.raises(UsageError, match=r"bands: .* is banded, and has a band for each of its 3 stacks"):
        racks["banded"].evaluate(bands=2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"draws": 0}, r"draws 0: expected 1 or more\."),
        ({"draws": 1.5}, r"draws: expected a whole number of 1 or more, found 1\.5\."),
        ({"sequences": 1}, r"sequences 1: expected 2 or more\."),
        ({"bands": 0}, r"bands 0: expected 1 or more\."),
        ({"batch_size": 0}, r"batch_size 0: expected 1 or more\."),
        ({"seed": -1}, r"seed -1: expected 0 to"),
    ],
)
def test_numbers_that_cannot_be_measured_with_are_refused(racks, asked, said):
    """No mask, no sequence or no band would be a bound of nothing."""
    with pytest.raises(UsageError, match=said):
        racks["sequential"].evaluate(**asked)


def test_a_precision_or_device_that_is_not_there(runs):
    """What was asked for is named, and not a key of the run's configuration."""
    with pytest.raises(UsageError, match='precision nf5: unknown precision "nf5"'):
        load_rack(runs["sequential"].directory, precision="nf5")
    with pytest.raises(UsageError, match='device "gpu": expected auto, cpu, cuda'):
        load_rack(runs["sequential"].directory, device="gpu")


@pytest.mark.cpu
def test_a_device_that_is_not_there(runs):
    """The message is about what the caller said."""
    with pytest.raises(UnavailableError, match=r'^device = "cuda", but torch'):
        load_rack(runs["sequential"].directory, device="cuda")


def test_another_text_has_a_field_of_its_own(racks, tmp_path):
    """A field of another name can be said."""
    text = tmp_path / "text.jsonl"
    text.write_text('{"body": "' + "In the beginning. " * 20 + '"}\n')
    with pytest.raises(UsageError, match='expected a field "text"'):
        racks["sequential"].evaluate(text)
    assert racks["sequential"].evaluate(corpus=text, text_field="body")[-1].tokens > 100


@pytest.mark.parametrize("name", ["sequential", "clm", "banded"])
def test_weights_that_are_not_finite_are_named(runs, name):
    """Whoever meets predictions that are no numbers can say which tensor of which stack is at fault."""
    rack = load_rack(runs[name].directory)
    with pytest.raises(StackwiseError, match="aren't finite, though all weights are"):
        rack.refuse_predictions()
    rack.stacks["0"].layers[0].mlp.up_proj.weight[2, 3] = torch.nan
    with pytest.raises(StackwiseError, match=r"aren't finite: stack 0, layers\.0\.mlp\.up_proj\.weight isn't finite"):
        rack.refuse_predictions()


def test_what_sampling_was_says_where_it_is(racks, monkeypatch):
    """Methods of earlier versions name their package, import and call, and whether it has to be installed."""
    rack = racks["sequential"]
    with pytest.raises(UsageError) as moved:
        rack.sample("The ", length=4)
    said = "rack.sample(...) is sample(rack, ...) of stackwise-sampling now (from stackwise_sampling import sample)"
    assert str(moved.value) == said
    with pytest.raises(UsageError, match=r"is text_for\(rack, \.\.\.\) of stackwise-sampling"):
        rack.text("In")
    monkeypatch.setattr(loaded_rack, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as moved:
        rack.unmask()
    assert str(moved.value).endswith("which is not installed: pip install stackwise-sampling")
    assert not hasattr(rack, "sample")
    with pytest.raises(AttributeError, match="'LoadedRack' object has no attribute 'nothing'"):
        _ = rack.nothing
