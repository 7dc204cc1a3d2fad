import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from stackwise_core.cli import main
from stackwise_core.errors import UsageError
from tests.checkpoints import save_checkpoint, write_tokenizer
from tests.racks import master_logits
from tests.tiny import Ran, run_tiny

FEW = {"evaluation.draws": 2, "evaluation.sequences": 4, "rack.stacks": 1, "training.steps_per_stack": 3}
STILL = {"training.block_lr": 0.0, "training.embedding_lr": 0.0, "training.head_lr": 0.0, "training.steps_per_stack": 1}


def add(path: Path, special=(), plain=()) -> Path:
    """A tokenizer.json with more tokens."""
    library = Tokenizer.from_file(str(path))
    library.add_special_tokens(list(special))
    library.add_tokens(list(plain))
    library.save(str(path))
    return path


def words(folder: Path, vocabulary: dict[str, int]) -> Path:
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


TOKENIZERS = {
    "bytes": lambda path: {},
    "no mask": lambda path: {"data.tokenizer": str(write_tokenizer(path))},
    "a mask by a usual name": lambda path: {"data.tokenizer": str(add(write_tokenizer(path), ["<mask>"]))},
    "a mask of its own": lambda path: {
        "data.tokenizer": str(add(write_tokenizer(path), ["<|mdm|>", "<mask>", "<pad>"])),
        "data.mask_token": "<|mdm|>",
    },
    "a mask that isn't called special": lambda path: {
        "data.tokenizer": str(add(write_tokenizer(path), [], ["<hidden>", "[PAD]"])),
        "data.mask_token": "<hidden>",
    },
    "a word as mask": lambda path: {"data.tokenizer": str(write_tokenizer(path)), "data.mask_token": "Ġthe"},
    "padding as mask": lambda path: {
        "data.tokenizer": str(add(write_tokenizer(path), ["<pad>"])),
        "data.mask_token": "<pad>",
    },
    "ids that only the configuration names": lambda path: {
        "data.tokenizer": str(write_tokenizer(path)),
        "data.special_ids": {"mask": 305, "pad": 303, "unk": 7},
    },
    "more rows than ids": lambda path: {"data.tokenizer": str(write_tokenizer(path)), "rack.vocab_size": 320},
    "words, most of them unknown": lambda path: {
        "data.tokenizer": str(words(path, {"[UNK]": 0, "the": 1, "And": 2, "God": 3, "[MASK]": 4}))
    },
}


def export(ran: Ran, target: Path) -> Path:
    done = CliRunner().invoke(main, ["export", str(ran.directory), "--to", "hf", str(target)])
    assert done.exit_code == 0, done.output
    return target


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(TOKENIZERS)), ids=list(TOKENIZERS))
def test_what_was_exported_starts_with_the_same_bound(tmp_path, place):
    """To the bit, whatever the tokenizer and its mask, with tied ends or untied ones; nothing but the path is said."""
    tokenizer = list(TOKENIZERS.values())[place](tmp_path / "own")
    changes = FEW | {"rack.tie_embeddings": place % 2 == 0, "trainer_mode": {"use": "end_to_end"}}
    first = run_tiny(tmp_path / "first", changes | tokenizer)
    rack = {"init_from": str(export(first, tmp_path / "hf")), "stacks": 1, "blocks_per_stack": 1}
    again = run_tiny(tmp_path / "again", FEW | STILL | {"rack": rack, "trainer_mode": {"use": "end_to_end"}})
    assert again.result.likelihoods == first.result.likelihoods
    for name in ("mask_id", "pad_id"):
        assert getattr(again.setup.tokenizer, name) == getattr(first.setup.tokenizer, name)
    assert again.setup.tokenizer.special_ids >= first.setup.tokenizer.special_ids
    assert again.setup.spec.vocab_size == first.setup.spec.vocab_size
    for name in ("embedding", "head", "stacks/000"):
        one, other = (each.directory / f"{name}.safetensors" for each in (first, again))
        assert one.exists() is other.exists() is (name != "head" or place % 2 == 1)
        if one.exists():
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_the_trained_row_of_a_mask_without_a_token_is_kept(tmp_path, tied):
    """As mdlm makes it: the row after the tokenizer's last. Masked text gives transformers' logits, to the bit."""
    model = save_checkpoint(
        tmp_path / "source", vocab_size=312, is_causal=False, mask_token_id=304, tie_word_embeddings=tied
    )
    rack = {"init_from": str(tmp_path / "source"), "stacks": 3, "blocks_per_stack": 1}
    ran = run_tiny(tmp_path, FEW | STILL | {"rack": rack, "trainer_mode": {"use": "end_to_end"}})
    assert (ran.setup.tokenizer.mask_id, ran.setup.spec.vocab_size) == (304, 312)
    ids = torch.arange(32)[None].clone()
    ids[:, ::2] = 304
    with torch.no_grad():
        assert torch.equal(master_logits(ran.directory, ran.setup.spec, ids), model(ids).logits)
    target = export(ran, tmp_path / "hf")
    rows = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(rows, model.model.embed_tokens.weight)
    rack["init_from"] = str(target)
    again = run_tiny(tmp_path / "again", FEW | STILL | {"rack": rack, "trainer_mode": {"use": "end_to_end"}})
    assert again.result.likelihoods == ran.result.likelihoods


def test_an_id_that_no_added_token_can_have_is_refused(tmp_path):
    """A gap in the vocabulary itself; nothing is written."""
    tokenizer = words(tmp_path / "own", {"[UNK]": 0, "the": 4})
    for mask in ({}, {"data.special_ids": {"mask": 2}}):
        ran = run_tiny(tmp_path / f"{len(mask)}", FEW | {"data.tokenizer": str(tokenizer)} | mask)
        done = CliRunner().invoke(main, ["export", str(ran.directory), "--to", "hf", str(tmp_path / "hf")])
        assert (done.exit_code, "since its ids have gaps: it can't be exported" in done.output) == (2, True)
        assert not (tmp_path / "hf").exists()


def test_fewer_rows_than_ids_are_refused(tmp_path):
    """With how many there must be."""
    with pytest.raises(UsageError, match=r"rack\.vocab_size = 100, and bytes has ids up to 257.*Set at least 258"):
        run_tiny(tmp_path, FEW | {"rack.vocab_size": 100})


def test_a_run_that_starts_from_such_a_run_has_its_mask(tmp_path):
    """What is special there follows, and so do the rows that stand for no token."""
    tokenizer = str(write_tokenizer(tmp_path / "own"))
    mode = {"trainer_mode": {"use": "end_to_end"}, "data.tokenizer": tokenizer}
    first = run_tiny(tmp_path / "first", FEW | mode | {"data.special_ids": {"mask": 305}, "rack.vocab_size": 320})
    again = run_tiny(tmp_path / "again", FEW | STILL | mode | {"rack.init_from": str(first.directory)})
    assert again.result.likelihoods == first.result.likelihoods
    assert (again.setup.tokenizer.mask_id, again.setup.spec.vocab_size) == (305, 320)
    other = STILL | mode | {"rack.init_from": str(first.directory), "rack.stacks": 1}
    with pytest.raises(UsageError, match=r"rack\.vocab_size: expected 320, as .* has, found 330"):
        run_tiny(tmp_path, other | {"rack.vocab_size": 330})
    with pytest.raises(UsageError, match=r"data\.special_ids\.mask: expected 305, as .* has, found 304"):
        run_tiny(tmp_path, other | {"data.special_ids": {"mask": 304}})
    plain = run_tiny(tmp_path / "plain", FEW)
    with pytest.raises(UsageError, match=r"has 258 rows of embedding, and this rack 300\. Leave rack\.vocab_size out"):
        run_tiny(tmp_path, FEW | {"rack.init_from": str(plain.directory), "rack.stacks": 2, "rack.vocab_size": 300})


def test_transformers_has_the_ids_of_mask_and_padding(tmp_path):
    """Also where tokenizer.json had no token for them, far beyond its last."""
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS["ids that only the configuration names"](tmp_path / "own")
    ran = run_tiny(tmp_path, FEW | tokenizer)
    target = export(ran, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(target)
    assert (theirs.mask_token_id, theirs.pad_token_id) == (305, 303)
    config = json.loads((target / "config.json").read_text())
    assert (config["mask_token_id"], config["pad_token_id"], config["vocab_size"]) == (305, 303, 306)
    assert theirs("In the beginning")["input_ids"] == ran.setup.tokenizer.encode(["In the beginning"])[0][0].tolist()
