"""Sampling from real racks: every kind of route, precision and objective."""

from pathlib import Path

import pytest
import torch

import stackwise_core as sw
from stackwise_core.engine.evaluation.loaded_rack import LoadedRack
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_sampling import Sampling, sample, text_for, unmask
from stackwise_sampling.sampling import ORDERS
from stackwise_sampling.sampling import sample as fill
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

SHORT = {"evaluation": {"sequences": 2, "draws": 1}}
RUNS = {
    "bf16": {"precision": {"active": "bf16"}, "training.time": "input"},
    "banded": {
        "trainer_mode": {"use": "banded", "cycles": 1},
        "mask_schedule": {"use": "linear", "min_fraction": 0.0, "max_fraction": 1.0},
    },
    "quantised": {
        "precision": {"active": "fp32", "trunk": "nf4"},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
        "trainer_mode": {"use": "progressive"},
    },
    "clm": {"objective": "clm"},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    """Finished runs by name."""
    parent = tmp_path_factory.mktemp("sampled")
    return {name: run_tiny(parent, {"run.name": name, **SHORT, **changes}).directory for name, changes in RUNS.items()}


@pytest.fixture(scope="module")
def racks(directories) -> dict[str, LoadedRack]:
    return {name: sw.load_rack(directory) for name, directory in directories.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["bf16", "banded", "quantised"])
def test_texts_of_real_racks(racks, name, order):
    """Gaps are filled and the rest stays, the same whether a text is alone or among others, to the last token."""
    rack = racks[name]
    asked = {"infill": "In the [MASK:9] God[MASK] heaven", "order": order, "steps": 5}
    texts = sample(rack, **asked, num=5)
    assert all(text.startswith("In the ") and text.endswith(" heaven") and " God" in text for text in texts)
    assert len(set(texts)) > 1
    assert texts[:1] == sample(rack, **asked)
    assert texts == sample(rack, **asked, num=5)
    assert texts != sample(rack, **asked, num=5, seed=99)


@pytest.mark.parametrize("changes", [{}, {"objective": "clm"}], ids=["masks", "clm"])
def test_rows_that_stand_for_no_token_are_put_nowhere(tmp_path, changes):
    """A rack of new weights, for which all rows are as likely, has most of them beyond the tokenizer."""
    few = SHORT | {"rack.vocab_size": 2000, "rack.stacks": 1, "training.steps_per_stack": 1}
    rack = sw.load_rack(run_tiny(tmp_path, few | changes).directory)
    *_, last = unmask(rack, text_for(rack, "In ", length=60), Sampling(num=2))
    assert last.ids.max() < 256


@pytest.mark.parametrize("order", ["random", "entropy"])
def test_each_step_of_a_banded_rack_takes_the_route_of_its_fraction(racks, order, monkeypatch):
    """From all masked to none the fraction falls, and each stack of three serves its own third."""
    rack, taken = racks["banded"], []
    predict = rack.run.forward.predict

    def spying(path, inputs, segments, fraction, where):
        taken.append((float(fraction[0]), path))
        return predict(path, inputs, segments, fraction, where)

    monkeypatch.setattr(rack.run.forward, "predict", spying)
    sample(rack, order=order, steps=rack.seq_len, num=3)
    assert [fraction for fraction, _ in taken] == sorted((fraction for fraction, _ in taken), reverse=True)
    assert taken[0][0] == 1.0
    assert {path for _, path in taken} == {(0,), (1,), (2,)}
    for fraction, path in taken:
        assert path == ((0,) if fraction <= 1 / 3 else (1,) if fraction <= 2 / 3 else (2,))


def test_a_text_beyond_the_window(racks):
    """A longer text than the rack sees is written in blocks, and its last block sees the end of what came before."""
    rack, seen = racks["bf16"], []

    class Watching:
        def predict(self, inputs, segments, fraction, where):
            seen.append(inputs[0].clone())
            return rack.predict(inputs, segments, fraction, where)

    text = text_for(rack, "b" * 50, length=40)
    *_, last = fill(Watching(), text, Sampling(steps=40, order="margin"), seq_len=32)
    assert {len(inputs) for inputs in seen} == {32}
    assert seen[0].tolist() == [98] * 16 + [256] * 16
    assert int((seen[-1] == 256).sum()) == 1
    assert int((seen[-1] != last.ids[0, 58:]).sum()) == 1


def test_depths_and_precisions_give_other_texts(directories, racks):
    """Fewer stacks, or coarser ones, predict something else; the depth of an untrained exit is refused."""
    rack = racks["bf16"]
    whole = sample(rack, num=10)
    assert sample(rack, num=10, depth=3) == whole
    assert sample(rack, num=10, depth=1) != whole
    assert sample(sw.load_rack(directories["bf16"], precision="nf4"), num=10) != whole
    with pytest.raises(UsageError, match="can be read out at 1, 2, 3"):
        sample(rack, depth=4)


def test_adapters_are_part_of_what_samples(directories, racks):
    """Without its adapters a rack writes other texts."""
    rack = sw.load_rack(directories["quantised"])
    before = sample(rack, num=10)
    assert before == sample(racks["quantised"], num=10)
    names = [name for name, _ in rack.named_parameters() if "lora_B" in name]
    assert names
    with torch.no_grad():
        for name in names:
            rack.get_parameter(name).zero_()
    assert sample(rack, num=10) != before


def test_a_causal_rack_writes_on(racks):
    """It goes on with a prompt, also far beyond its window, and refuses what isn't causal."""
    rack = racks["clm"]
    texts = sample(rack, "In the beginning", length=50, num=3)
    assert all(text.startswith("In the beginning") for text in texts)
    assert len(set(texts)) == 3
    assert texts[:1] == sample(rack, "In the beginning", length=50)
    for asked, message in [
        ({"infill": "a [MASK] b"}, "can't fill gaps within"),
        ({"infill": "[MASK:5]"}, "needs a prompt"),
        ({}, "needs a prompt"),
        ({"prompt": "a", "order": "random"}, "order: expected none"),
        ({"prompt": "a", "steps": 3}, "steps: expected none"),
        ({"prompt": "a", "block": 3}, "block: expected none"),
    ]:
        with pytest.raises(UsageError, match=message):
            sample(rack, **asked)


def test_a_causal_token_is_the_likeliest_of_a_forward_pass(racks):
    """At temperature 0 every token is the argmax of the logits at the token before it."""
    rack = racks["clm"]
    (text,) = sample(rack, "In the beginning", length=10, temperature=0.0)
    ids = torch.tensor([list(text.encode())])
    assert rack(ids)[0, :, :256].argmax(-1)[15:25].tolist() == ids[0, 16:].tolist()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": 5}, r"prompt: expected a text, found 5\."),
        ({"prompt": "\ud800"}, "prompt: expected UTF-8, found half a surrogate pair at character 0"),
        ({"infill": b"[MASK]"}, "infill: expected a text"),
        ({"length": 0}, r"length 0: expected 1 or more\."),
        ({"length": "10"}, "length: expected a whole number of 1 or more, found '10'"),
        ({"num": 2.0}, r"num: expected a whole number of 1 or more, found 2\.0"),
        ({"temperature": None}, "temperature: expected a number, found None"),
        ({"seed": -1}, "seed -1: expected 0 to"),
        ({"prompt": "a", "infill": "[MASK]"}, "infill with a prompt or length"),
    ],
)
def test_what_cannot_be_sampled_is_refused(racks, asked, said):
    """The message names the argument."""
    with pytest.raises(UsageError, match=said):
        sample(racks["bf16"], **asked)


@pytest.mark.parametrize("name", ["bf16", "clm", "banded"])
def test_a_rack_that_is_not_finite_writes_nothing(directories, name):
    """Sampling names the stack and the tensor in place of writing what NaN makes likeliest."""
    rack = sw.load_rack(directories[name])
    weight = rack.stacks["0"].layers[0].mlp.up_proj.weight
    weight[2, 3] = torch.nan
    with pytest.raises(StackwiseError, match=r"aren't finite: stack 0, layers\.0\.mlp\.up_proj\.weight isn't finite"):
        sample(rack, "In the", length=4)
