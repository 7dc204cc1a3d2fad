"""Each check of CheckpointFormatContract refuses a format that is wrong in just that."""

import pytest
import torch
from attrs import evolve

from stackwise_core.interfaces.checkpoint_format import EMBEDDING, Refusal
from stackwise_core.testing.checkpoint_format import RACKS, CheckpointFormatContract, save
from tests.testing.one_file import FILE, NeedsTorch, OneFile, Options


class TestRight(CheckpointFormatContract):
    @pytest.fixture
    def format(self):
        return OneFile(Options())


class KnowsEverything(OneFile):
    def recognises(self, directory):
        return True


class KnowsRuns(OneFile):
    def recognises(self, directory):
        return any(directory.glob("*.safetensors"))


class ForgetsAttention(OneFile):
    def describe(self, directory):
        return evolve(super().describe(directory), attention="bidirectional")


class Refuses(OneFile):
    def describe(self, directory):
        return evolve(super().describe(directory), refusals=(Refusal("never"),))


class NamesNoFile(OneFile):
    def describe(self, directory):
        return evolve(super().describe(directory), files=())


class MovesTheMask(OneFile):
    def describe(self, directory):
        return evolve(super().describe(directory), special_ids={"mask": 259, "pad": 257})


class Rounds(OneFile):
    def read(self, directory, checkpoint, name, into):
        super().read(directory, checkpoint, name, into)
        into.copy_(into.bfloat16())


class ReadsOnce(OneFile):
    def read(self, directory, checkpoint, name, into):
        if name not in (seen := self.__dict__.setdefault("seen", set())):
            seen.add(name)
            super().read(directory, checkpoint, name, into)


class FillsAll(OneFile):
    def read(self, directory, checkpoint, name, into):
        super().read(directory, checkpoint, name, into)
        if name == EMBEDDING and into._base is not None:
            into._base[len(into) :] = 0


class Collects(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        return super().write(rack, iter(dict(tensors).items()), tokenizer, directory)


class WritesBeside(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        (directory.parent / "log.txt").touch()
        return super().write(rack, tensors, tokenizer, directory)


class Tidies(OneFile):
    def describe(self, directory):
        (directory / "seen").touch()
        return super().describe(directory)


class TrustsAnything(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        written = super().write(rack, tensors, tokenizer, directory)
        (directory / "weights.bin").write_bytes((directory / FILE).read_bytes())
        return written

    def read(self, directory, checkpoint, name, into):
        content = (directory / "weights.bin").read_bytes()
        if len(content) == (directory / FILE).stat().st_size:
            super().read(directory, checkpoint, name, into)
        else:
            into.zero_()


class SaysNothing(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        return evolve(super().write(rack, tensors, tokenizer, directory), title=" ")


class SaysNoJson(OneFile):
    def write(self, rack, tensors, tokenizer, directory):
        return evolve(super().write(rack, tensors, tokenizer, directory), facts={"shape": torch.Size([1])} | {"a": {1}})


WRONG = {
    "knows everything": ("test_it_recognises_its_own_and_nothing_else", KnowsEverything),
    "knows runs": ("test_it_recognises_its_own_and_nothing_else", KnowsRuns),
    "forgets attention": ("test_what_was_written_is_described", ForgetsAttention),
    "refuses": ("test_what_was_written_is_described", Refuses),
    "names no file": ("test_what_was_written_is_described", NamesNoFile),
    "moves the mask": ("test_tokens_keep_their_ids", MovesTheMask),
    "rounds": ("test_weights_come_back_to_the_bit", Rounds),
    "reads once": ("test_weights_come_back_to_the_bit", ReadsOnce),
    "fills all": ("test_a_tensor_fills_a_part_of_another", FillsAll),
    "collects": ("test_tensors_are_not_collected", Collects),
    "writes beside": ("test_only_its_directory_is_written", WritesBeside),
    "tidies": ("test_reading_changes_nothing", Tidies),
    "trusts anything": ("test_damage_is_no_other_model", TrustsAnything),
    "says nothing": ("test_what_was_written_is_said", SaysNothing),
    "says no JSON": ("test_what_was_written_is_said", SaysNoJson),
    "needs torch": ("test_describing_needs_no_torch", NeedsTorch),
}
OF_WHAT_WAS_WRITTEN = {
    "test_tensors_are_not_collected",
    "test_only_its_directory_is_written",
    "test_what_was_written_is_said",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_wrong_formats_are_refused(what, refuses, tmp_path):
    """Each wrong format fails the check that is about it."""
    check, made = WRONG[what]
    format = made(Options())
    saved = {name: save(format, spec, tmp_path / name / "model") for name, spec in RACKS.items()}
    fixtures = {"saved": saved}
    if check not in OF_WHAT_WAS_WRITTEN:
        fixtures["format"] = format
    if "recognises" in check:
        fixtures["tmp_path"] = tmp_path / "others"
        (tmp_path / "others").mkdir()
    refuses(CheckpointFormatContract(), check, TypeError, **fixtures)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(CheckpointFormatContract, {check for check, _ in WRONG.values()})
