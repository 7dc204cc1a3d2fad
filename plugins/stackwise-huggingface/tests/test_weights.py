import json
import shutil
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from stackwise_core.config.source_checkpoint import read_source
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.weights.checkpoint_weights import CheckpointWeights
from stackwise_core.engine.weights.source import Source
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.registry import Registry
from stackwise_core.run_files.names import stack_file
from tests.checkpoints import save_checkpoint, write_tokenizer
from tests.racks import master_logits
from tests.tiny import Ran, run_tiny

STILL = {"training.block_lr": 0.0, "training.embedding_lr": 0.0, "training.head_lr": 0.0, "training.steps_per_stack": 1}
FEW = {"evaluation.draws": 1, "evaluation.sequences": 4}
IDS = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(1))


def start(folder: Path, source: Path, changes: dict | None = None, **rack) -> Ran:
    """A run whose rack says nothing but where it starts and how many stacks it has."""
    given = {"rack": {"init_from": str(source), "stacks": 3, "blocks_per_stack": 1, **rack}}
    return run_tiny(folder, FEW | {"trainer_mode": {"use": "end_to_end"}} | given | (changes or {}))


def logits(model, attention: str = "causal") -> torch.Tensor:
    model.config.is_causal = attention == "causal"
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["5GB", "40kB"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("LlamaForCausalLM", {"tie_word_embeddings": True}),
        ("LlamaForCausalLM", {"num_key_value_heads": 4}),
        ("LlamaForCausalLM", {"num_key_value_heads": 1, "num_hidden_layers": 3}),
        ("EuroBertForMaskedLM", {"tie_word_embeddings": True}),
        ("EuroBertForMaskedLM", {}),
        ("MistralForCausalLM", {"sliding_window": None}),
    ],
)
def test_the_imported_rack_gives_transformers_logits(tmp_path, kind, changes, shard):
    """To the bit, in fp32 under sdpa, of whatever model and however its file is cut; ours has two tokens more."""
    model = save_checkpoint(tmp_path / "source", kind, shard=shard, **changes)
    assert (tmp_path / "source" / "model.safetensors").exists() is (shard == "5GB")
    ran = start(tmp_path, tmp_path / "source", STILL)
    for attention in ("bidirectional",) if kind.startswith("Euro") else ("causal", "bidirectional"):
        if kind.startswith("Mistral") and attention == "bidirectional":
            continue
        ours = master_logits(ran.directory, ran.setup.spec, IDS, attention=attention)
        assert torch.equal(ours[..., :300], logits(model, attention))
    assert ran.setup.spec.vocab_size == 302


def test_half_precision_becomes_fp32_without_loss(tmp_path):
    """Of bf16, as most checkpoints are."""
    model = save_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    ran = start(tmp_path, tmp_path / "source", STILL)
    theirs = dict(model.named_parameters())
    ours = RunDirectory(ran.directory).read_stack(1)
    for name, tensor in ours.items():
        if name.startswith("layers.0."):
            assert torch.equal(tensor, theirs[f"model.layers.1.{name.removeprefix('layers.0.')}"].float())


def test_every_exit_begins_with_the_one_norm_and_the_last_one_counts(tmp_path):
    """The head was never read elsewhere; new rows of embedding and head are the means of the others."""
    model = save_checkpoint(tmp_path / "source")
    ran = start(tmp_path, tmp_path / "source", STILL)
    run = RunDirectory(ran.directory)
    for stack in range(3):
        assert torch.equal(run.read_stack(stack)["norm.weight"], model.model.norm.weight)
    assert ran.setup.source.exits == {2}
    ends = run.read_ends(ran.setup.spec)[None]
    for ours, theirs in (("embed_tokens.weight", model.model.embed_tokens), ("lm_head.weight", model.lm_head)):
        assert torch.equal(ends[ours][:300], theirs.weight)
        torch.testing.assert_close(ends[ours][300:], theirs.weight.mean(0).expand(2, -1).detach())


def test_rows_beyond_the_tokenizer_are_kept(tmp_path):
    """They may be the trained mask's. The plan says so, and what else becomes of the source."""
    model = save_checkpoint(tmp_path / "source", vocab_size=320)
    ran = start(tmp_path, tmp_path / "source", STILL | {"data.seq_len": 96})
    assert torch.equal(master_logits(ran.directory, ran.setup.spec, IDS, attention="causal"), logits(model))
    assert (ran.setup.tokenizer.mask_id, ran.setup.tokenizer.pad_id, ran.setup.spec.vocab_size) == (300, 301, 320)
    notes = "\n".join(ran.plan.notes)
    assert "The 20 rows of its embedding that stand for no token of its tokenizer are kept." in notes
    assert "No file of it names a mask token: it is 300, the first of those rows." in notes
    assert "trained with causal attention, and goes on with bidirectional" in notes
    assert "made for 64 positions, and data.seq_len is 96" in notes
    only_rows = start(tmp_path, tmp_path / "source", STILL | {"data.seq_len": 96}, init="embedding", stacks=1)
    assert not [note for note in only_rows.plan.notes if "positions" in note or "attention" in note]


MODES = {
    "blockwise": {"trainer_mode": {"use": "blockwise"}},
    "a copy over a trunk in nf4": {
        "trainer_mode": {"use": "fused", "start": "copy"},
        "precision": {"active": "bf16", "trunk": "nf4"},
    },
    "downwards": {"trainer_mode": {"use": "progressive", "building": "prepend", "start": "zero_output"}},
    "adapters all over": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
        "adapter": {"trunk": {"use": "lora", "rank": 2}},
        "precision": {"active": "fp32", "trunk": "qlora"},
    },
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A causal Llama of three blocks."""
    path = tmp_path_factory.mktemp("source") / "llama"
    save_checkpoint(path, tie_word_embeddings=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("changes", MODES.values(), ids=MODES)
def test_any_mode_goes_on_from_it(tmp_path, source, changes):
    """New stacks join above it or below; what was given stays as it was, to the bit, and the run is verified."""
    from stackwise_core.run_files.manifest import Manifest

    ran = start(tmp_path, source, {"training.steps_per_stack": 2} | changes, stacks=4)
    given = sorted(ran.setup.spec.given)
    assert given == ([1, 2, 3] if changes["trainer_mode"].get("building") else [0, 1, 2])
    weights = load_file(source / "model.safetensors")
    for block, stack in enumerate(given):
        ours = RunDirectory(ran.directory).read_stack(stack)
        assert torch.equal(ours["layers.0.mlp.up_proj.weight"], weights[f"model.layers.{block}.mlp.up_proj.weight"])
    manifest = Manifest(ran.directory)
    assert not any(manifest.problem(name) for name in manifest)


def test_blocks_may_be_dealt_by_the_stack(tmp_path, source):
    """Three in one stack, and two in a stack that they don't fill."""
    ran = start(tmp_path, source, STILL, stacks=1, blocks_per_stack=3)
    apart = start(tmp_path / "apart", source, STILL)
    one, three = (master_logits(each.directory, each.setup.spec, IDS) for each in (ran, apart))
    assert torch.equal(one, three)
    with pytest.raises(UsageError, match="has 3 blocks, which end within stack 1"):
        start(tmp_path, source, stacks=2, blocks_per_stack=2)


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_alone(tmp_path, source, tied):
    """Everything else is new; an untied head begins as the checkpoint's, or as the embedding where that is its head."""
    ran = start(tmp_path, source, STILL, init="embedding", stacks=2, n_heads=2, tie_embeddings=tied)
    spec, theirs = ran.setup.spec, load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    ends = RunDirectory(ran.directory).read_ends(spec)[None]
    assert (spec.given, spec.d_model, spec.d_ff) == (frozenset(), 32, 128)
    for tensor in ends.values():
        assert torch.equal(tensor[:300], theirs)
    assert len(ends) == (1 if tied else 2)
    assert ran.plan.phases[0].phase.embedding


def test_the_head_of_an_untied_checkpoint_comes_with_its_embedding(tmp_path):
    """Where this rack's is untied, too."""
    model = save_checkpoint(tmp_path / "source")
    ran = start(tmp_path, tmp_path / "source", STILL, init="embedding", stacks=1, tie_embeddings=False)
    ends = RunDirectory(ran.directory).read_ends(ran.setup.spec)[None]
    assert torch.equal(ends["lm_head.weight"][:300], model.lm_head.weight)


def test_the_embedding_of_a_run(tmp_path):
    """Of another run's rack, whatever its blocks are like."""
    first = run_tiny(tmp_path / "first", FEW | {"rack.stacks": 1, "training.steps_per_stack": 2})
    rack = {"init_from": str(first.directory), "init": "embedding", "stacks": 1, "n_heads": 4, "d_ff": 40}
    for tied in (True, False):
        ran = run_tiny(tmp_path / f"{tied}", FEW | STILL | {"rack": {**rack, "tie_embeddings": tied}})
        theirs = RunDirectory(first.directory).read_ends(first.setup.spec)[None]["embed_tokens.weight"]
        ends = RunDirectory(ran.directory).read_ends(ran.setup.spec)[None]
        assert all(torch.equal(tensor, theirs) for tensor in ends.values())


@pytest.mark.slow
def test_a_run_goes_on_from_its_own_copy(tmp_path):
    """Taken up it ends with the same bits as one that ran through, if the source is as it was; that may then go."""
    from stackwise_core.engine.evaluation.finished import FinishedRun
    from stackwise_core.engine.events.stopping import Stopping
    from tests.tiny import TinyRun

    save_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    changes = FEW | {
        "rack": {"init_from": str(tmp_path / "source"), "stacks": 3, "blocks_per_stack": 1},
        "trainer_mode": {"use": "end_to_end"},
        "training.steps_per_stack": 3,
    }
    whole = run_tiny(tmp_path / "whole", changes)
    stopping, steps = Stopping(), []

    def listen(event):
        if type(event).__name__ == "StepDone":
            steps.append(event)
            if len(steps) == 2:
                stopping.requested = True

    tiny = TinyRun.of(tmp_path / "broken", changes)
    first = tiny.engine(listen, stopping=stopping)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    save_checkpoint(tmp_path / "source", tie_word_embeddings=True, num_hidden_layers=2)
    other = TinyRun.of(tmp_path / "broken", changes)
    with pytest.raises(UsageError, match=r"or what rack\.init_from names changed\?"):
        other.engine(lambda event: None, begun=RunDirectory(first.directory)).run()
    save_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    again = TinyRun.of(tmp_path / "broken", changes)
    again.engine(lambda event: None, begun=RunDirectory(first.directory)).run()
    for stack in range(3):
        name = stack_file(stack)
        assert (first.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "source" / name).unlink()
    finished = FinishedRun.open(first.directory)
    assert finished.parts.spec.rope_theta == 5000.0


def test_tensors_are_held_one_stack_at_a_time(tmp_path, source, monkeypatch):
    """What is in memory while a checkpoint is copied is a stack's, whatever the depth."""
    held, most = [], []
    fill = CheckpointWeights._fill

    def counting(self, name, into):
        held.append(into)
        most.append(sum(each.nbytes for each in held))
        fill(self, name, into)

    monkeypatch.setattr(CheckpointWeights, "_fill", counting)
    monkeypatch.setattr(RunDirectory, "write_stack", lambda self, index, tensors: held.clear())
    read, spec = read_source(source, Registry.discover(environ={})), start(tmp_path, source, STILL).setup.spec
    held.clear(), most.clear()
    Source.of(read, spec, "up").copy_into(RunDirectory(tmp_path), spec)
    assert max(most) <= max(4 * (spec.stack_parameters(0)), 4 * spec.vocab_size * spec.d_model)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    """With the file and the tensor; nothing is trained on them."""
    save_checkpoint(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(weights, file)
    with pytest.raises(StackwiseError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has numbers that aren't finite"):
        start(tmp_path, tmp_path / "source")


def test_a_mean_that_overflows_is_refused(tmp_path):
    """The rows of tokens that the checkpoint lacks are the mean of all others, which finite numbers may not have."""
    save_checkpoint(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][:, 3] = 3e38
    save_file(weights, file)
    with pytest.raises(StackwiseError, match=r"the mean of embed_tokens\.weight, .* isn't finite: inf at \[300, 3\]"):
        start(tmp_path, tmp_path / "source", STILL)


def test_a_tied_checkpoint_with_a_head_of_its_own_is_refused(tmp_path):
    """A copy of the embedding is fine; another head would be another model."""
    save_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    for shift, refused in ((0.0, False), (0.5, True)):
        save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + shift}, file)
        if not refused:
            start(tmp_path, tmp_path / "source", STILL)
            continue
        with pytest.raises(StackwiseError, match=r"lm_head\.weight isn't the embedding"):
            start(tmp_path, tmp_path / "source", STILL)


@pytest.mark.slow
def test_what_was_exported_can_be_imported(tmp_path):
    """A rack comes back from transformers' files as it was, with the built-in tokenizer or with the file's."""
    from click.testing import CliRunner

    from stackwise_core.cli import main

    first = run_tiny(tmp_path / "first", FEW | {"rack.stacks": 2, "training.steps_per_stack": 2})
    done = CliRunner().invoke(main, ["export", str(first.directory), "--to", "hf", str(tmp_path / "hf")])
    assert done.exit_code == 0, done.output
    for name, changes in (("own", {}), ("bytes", {"data.tokenizer": "bytes"})):
        again = start(tmp_path / name, tmp_path / "hf", STILL | changes, stacks=2)
        assert again.setup.spec.vocab_size == 258
        before, after = (master_logits(each.directory, each.setup.spec, IDS % 256) for each in (first, again))
        assert torch.equal(before, after)


NAMED = {
    "tokenizer_config.json": {
        "tokenizer_config": {"mask_token": "<m>", "pad_token": {"__type": "AddedToken", "content": "<p>"}}
    },
    "special_tokens_map.json": {"special_tokens_map": {"mask_token": {"content": "<m>"}, "pad_token": "<p>"}},
    "an id of its own": {
        "tokenizer_config": {
            "mask_token": "<x>",
            "pad_token": "<p>",
            "added_tokens_decoder": {"302": {"content": "<x>", "special": True}},
        }
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("files", NAMED.values(), ids=NAMED)
def test_mask_and_padding_are_those_of_transformers(tmp_path, source, files):
    """Wherever they are named; ids with gaps are numbered as its tokenizer numbers them."""
    from transformers import AutoTokenizer

    path = Path(shutil.copytree(source, tmp_path / "source"))
    save_checkpoint(path, tie_word_embeddings=True, vocab_size=320)
    content = json.loads((path / "tokenizer.json").read_text())
    end = content["added_tokens"][0]
    more = [{**end, "id": id_, "content": token} for id_, token in ((307, "<m>"), (310, "<p>"))]
    (path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": [end, *more]}))
    for name, said in files.items():
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"} if name == "tokenizer_config" else {}
        (path / f"{name}.json").write_text(json.dumps(said | kind))
    theirs, ran = AutoTokenizer.from_pretrained(path), start(tmp_path, path, STILL)
    ours = ran.setup.tokenizer
    assert (ours.mask_id, ours.pad_id) == (theirs.mask_token_id, theirs.pad_token_id)
    assert (ours.mask_id, ours.pad_id) == (302 if "<x>" in str(files) else 300, 301)
    notes = "\n".join(ran.plan.notes)
    assert "tokenizer.json gives <m> the id 307, and the tokenizers library 300, as it numbers them" in notes
    assert ran.setup.spec.vocab_size == 320


def test_an_adapter_that_was_folded_in_as_the_message_says(tmp_path, source):
    """transformers loads what lies beside the weights; merged by peft and saved elsewhere, the rack has its logits."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    both = Path(shutil.copytree(source, tmp_path / "both"))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(both), lora).save_pretrained(both)
    with pytest.raises(UsageError, match=r"both has one that belongs over its weights\n.*merge_and_unload"):
        start(tmp_path, both)
    theirs = logits(LlamaForCausalLM.from_pretrained(both, attn_implementation="sdpa").eval())
    (tmp_path / "adapter").mkdir()
    for file in both.glob("adapter_*"):
        file.rename(tmp_path / "adapter" / file.name)
    folded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(both), tmp_path / "adapter").merge_and_unload()
    folded.save_pretrained(tmp_path / "merged")
    shutil.copy(both / "tokenizer.json", tmp_path / "merged")
    ran = start(tmp_path, tmp_path / "merged", STILL)
    ours = master_logits(ran.directory, ran.setup.spec, IDS, attention="causal")[..., :300]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    without = logits(LlamaForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval())
    assert (ours - without).abs().max() > 0.1


def test_a_file_that_changed_since_it_was_checked(tmp_path, source):
    """A tensor that has gone or is another is an error, and no traceback; nothing is read beyond its end."""
    read, spec = read_source(source, Registry.discover(environ={})), start(tmp_path, source, STILL).setup.spec
    stored = {**read.described.stored, "norm.weight": ("model.safetensors", "model.other")}
    gone = evolve(read, described=evolve(read.described, stored=stored))
    with pytest.raises(StackwiseError, match=r"model\.other isn't there any more"):
        CheckpointWeights(gone).stack(range(1))
    weights = load_file(source / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    for number, other in enumerate((embedding[:250].clone(), embedding.double())):
        path = Path(shutil.copytree(source, tmp_path / f"{number}"))
        begun = CheckpointWeights(read_source(path, Registry.discover(environ={})))
        save_file({**weights, "model.embed_tokens.weight": other}, path / "model.safetensors")
        with pytest.raises(StackwiseError, match=r"model\.embed_tokens\.weight has another shape now or other numbers"):
            begun.embedding(spec)


def test_an_embedding_from_a_base_model(tmp_path):
    """A base model has no head; all of it can't be taken where it isn't tied, its embedding can."""
    save_checkpoint(tmp_path / "source", "LlamaModel")
    with pytest.raises(UsageError, match=r"has no LM head, as a base model \(LlamaModel\)"):
        start(tmp_path, tmp_path / "source")
    start(tmp_path, tmp_path / "source", STILL, init="embedding", stacks=1)
    save_checkpoint(tmp_path / "tied", "EuroBertModel", tie_word_embeddings=True)
    assert start(tmp_path, tmp_path / "tied", STILL).setup.spec.given == {0, 1, 2}


def test_the_tokenizer_must_be_the_source_s(tmp_path, source):
    """Left out it is; another is refused with its own."""
    other = write_tokenizer(tmp_path / "other", 290)
    for tokenizer in ("bytes", str(other)):
        with pytest.raises(UsageError, match=r"expected the source's own tokenizer, .*llama/tokenizer\.json"):
            start(tmp_path, source, {"data.tokenizer": tokenizer})
    content = json.loads((source / "tokenizer.json").read_text())
    mask = {**content["added_tokens"][0], "id": 300, "content": "[MASK]"}
    more = tmp_path / "more.json"
    more.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], mask]}))
    ran = start(tmp_path, source, STILL | {"data.tokenizer": str(more)})
    assert (ran.setup.tokenizer.mask_id, ran.setup.spec.vocab_size) == (300, 302)
