"""An export in whatever format: all of it or nothing, and a format that fails is named."""

import pytest

from stackwise_core.config.source_run import read_source_run
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.engine.weights.export import Export
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.component import ContractError
from tests.testing.one_file import FILE, OneFile, Options
from tests.tiny import Ran, run_tiny

QUICK = {"training.steps_per_stack": 1, "rack.stacks": 2, "evaluation.draws": 1, "evaluation.sequences": 4}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    return run_tiny(tmp_path_factory.mktemp("export"), QUICK)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Ran:
    changes = {"adapter": {"stack": {"use": "lora", "rank": 2}}, "trainer_mode": {"use": "progressive"}}
    return run_tiny(tmp_path_factory.mktemp("adapted"), QUICK | {"training.steps_per_stack": 2} | changes)


def export_of(ran: Ran, depth: int | None = None) -> Export:
    tokenizer = load_tokenizer("bytes", mask_token=None)
    adapters = ran.setup.implementations.formats.adapters
    return Export.of(read_source_run(ran.directory), tokenizer, "bytes", adapters, depth=depth)


class Keeps(OneFile):
    """Keeps what it is asked to write."""

    def write(self, rack, tensors, tokenizer, directory):
        self.rack, self.tokenizer = rack, tokenizer
        return super().write(rack, tensors, tokenizer, directory)


class HoldsAdapters(Keeps):
    holds_adapters = True


class Refuses(OneFile):
    def refuses(self, rack):
        return f"--to refuses: {rack.blocks} blocks are too many"


class Raises(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        (directory / "half").touch()
        raise KeyError("no rope")


class GivesNothing(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        super().write(rack, tensors, tokenizer, directory)


WRONG = {
    "refuses": (Refuses, UsageError, "--to refuses: 2 blocks are too many"),
    "raises": (Raises, StackwiseError, "Raises failed to write: KeyError: 'no rope'"),
    "gives nothing": (GivesNothing, ContractError, r"write\(\) gave None, a Written was expected"),
}


@pytest.mark.parametrize(("made", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_format_that_fails_leaves_nothing(tmp_path, ran, made, error, message):
    """It is named with what it did."""
    with pytest.raises(error, match=message):
        export_of(ran).write(made(Options()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_format_gets_the_rack_as_it_is_written(tmp_path, ran):
    """Only the stacks of the depth that is asked for, under the final name; the tokenizer's special ids."""
    format = Keeps(Options())
    exported = export_of(ran, depth=1).write(format, tmp_path / "model")
    assert (exported.stacks, exported.blocks, format.rack.name, format.rack.spec.blocks) == (1, 1, "model", (1,))
    assert exported.files == (FILE, "tokenizer.json")
    assert format.tokenizer.special_ids == {"mask": 256, "pad": 257}
    assert format.tokenizer.tokens == {256: "[MASK]", 257: "[PAD]"}
    described = format.describe(tmp_path / "model")
    assert (described.blocks, described.d_model, described.seq_len) == (1, 32, 32)


@pytest.mark.slow
def test_adapters_go_where_a_format_has_a_place_for_them(tmp_path, adapted):
    """Their own hook writes them; a format without a place refuses the run, and the message says what to do."""
    with pytest.raises(UsageError, match=r'and Keeps has no place for them\. "stackwise merge .*tiny" folds them'):
        export_of(adapted).write(Keeps(Options()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    format = HoldsAdapters(Options())
    exported = export_of(adapted).write(format, tmp_path / "model")
    assert exported.adapters == format.rack.adapters == ("stack",)
    assert (tmp_path / "model" / "adapters" / "stack" / "adapter_config.json").is_file()
    (loading,) = format.rack.loading
    assert "model/adapters/stack" in loading
