"""What is found in a cache: equal things below and equal draws have one name, and nothing else has it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stackwise_core.builtin.options import MLMOptions
from stackwise_core.engine.boundary.boundary import draw_keys
from stackwise_core.engine.boundary.namespace import namespace, provenance
from stackwise_core.engine.draws.draws import Drawer, Draws, Stream
from stackwise_core.engine.draws.noise import Noise
from stackwise_core.engine.draws.sequences import Split
from stackwise_core.engine.events.events import RunResult
from stackwise_core.engine.objective.mlm import MLM
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.cache_backend import Layout
from stackwise_core.interfaces.precision import Precision
from stackwise_core.registry import Registry
from stackwise_masking.options import ConstantOptions, RangeOptions
from stackwise_masking.schedules import Constant, Cosine, Linear
from tests.texts import files, prepared
from tests.tiny import TEXT, Ran, run_tiny

pytestmark = pytest.mark.slow

TRUNK = (0, 1)
"""The stacks below; stack 2 and the head are above, and of no account."""
SAMPLES = range(4)
WEIGHTS = ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.down_proj.weight", "layers.0.input_layernorm.weight")


@frozen
class Weight:
    """One number of one tensor, made the next one that fp32 has."""

    tensor: str
    element: int


@frozen
class Below:
    """What a boundary is made of; two that are equal have one store."""

    layout: Layout
    chunk: int = 16
    """Sequences that pass the trunk together."""
    weights: frozenset[tuple[int, Weight]] = frozenset()
    """Of the trunk's masters, by stack, that are changed."""
    adapter: frozenset[tuple[int, Weight]] = frozenset()
    """Of its adapters."""
    embedding: frozenset[int] = frozenset()
    """Elements of the embedding that are changed."""
    alpha: float = 32.0
    """Of the adapters' options."""
    precision: str = "fp32"
    """Of the trunk."""
    precisions: frozenset[tuple[int, str]] = frozenset()
    """Of single stacks of it."""
    spec: tuple[tuple[str, Any], ...] = ()
    """What differs in the rack's shape."""
    settings: tuple[tuple[str, str], ...] = ()
    """What differs of tokenizer and versions."""


@frozen
class Above:
    """What no boundary of the trunk depends on."""

    weights: frozenset[Weight] = frozenset()
    head: frozenset[int] = frozenset()
    precision: str = "fp32"


@frozen
class Drawn:
    """Where a draw comes from. Two that differ can be equal draws all the same."""

    seed: int = 3
    number: int = 0
    """Of the draw, below masks_per_sample."""
    text: int = 0
    seq_len: int = 32
    schedule: tuple[str, float] = ("linear", 0.9)
    progress: tuple[float, float] = (0.0, 1.0)
    at_least_one: bool = True
    causal: bool = False
    random: float = 0.0
    """Share of the masked tokens that become any other."""
    keep: float = 0.0
    """Share that stays as it is, so that other masks can have equal ids."""


@frozen
class World:
    below: Below
    above: Above
    drawn: Drawn
    packed_anew: int = 0
    """From which token on a sequence is another document; 0: as it is."""
    tells_time: bool = False


def layouts() -> st.SearchStrategy[Layout]:
    dtypes = st.sampled_from(["bf16", "fp32", "int8", "fp8", "int4"])
    return st.builds(Layout, tokens=st.sampled_from([32, 64]), d_model=st.sampled_from([32, 64]), dtype=dtypes)


def weights(tensors: tuple[str, ...]) -> st.SearchStrategy[Weight]:
    return st.builds(Weight, st.sampled_from(tensors), st.integers(0, 10_000))


def of_stacks(tensors: tuple[str, ...]) -> st.SearchStrategy[frozenset[tuple[int, Weight]]]:
    return st.frozensets(st.tuples(st.sampled_from(TRUNK), weights(tensors)), min_size=1, max_size=2)


PRECISIONS = st.sampled_from(["bf16", "fp16", "nvfp4", "fp8"])
ELEMENTS = st.frozensets(st.integers(0, 8_000), min_size=1, max_size=2)
BELOW: dict[str, st.SearchStrategy[Any]] = {
    "layout": layouts(),
    "chunk": st.sampled_from([8, 32]),
    "weights": of_stacks(WEIGHTS),
    "adapter": of_stacks(("lora_A", "lora_B")),
    "embedding": ELEMENTS,
    "alpha": st.sampled_from([1.0, 16.0]),
    "precision": PRECISIONS,
    "precisions": st.frozensets(st.tuples(st.sampled_from(TRUNK), PRECISIONS), min_size=1, max_size=1),
    "spec": st.sampled_from(
        [
            (("n_heads", 4), ("n_kv_heads", 4)),
            (("n_kv_heads", 1),),
            (("rope_theta", 500.0),),
            (("norm_eps", 1e-6),),
            (("attention", "causal"),),
            (("blocks", (2, 1, 1)),),
            (("time_encoding", "sinusoidal"),),
            (("time_encoding", "learned"), ("time_fractions", (0.5, 1.0))),
            (("time_encoding", "learned"), ("time_fractions", (0.6, 1.0))),
        ]
    ),
    "settings": st.sampled_from(["tokenizer", "device", "torch", "stackwise-core", "plugins", "packages"]).map(
        lambda key: ((key, "other"),)
    ),
}
ABOVE: dict[str, st.SearchStrategy[Any]] = {
    "weights": st.frozensets(weights(WEIGHTS), min_size=1, max_size=2),
    "head": ELEMENTS,
    "precision": PRECISIONS,
}
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 5),
    "number": st.integers(0, 3),
    "text": st.integers(1, 2),
    "seq_len": st.just(64),
    "schedule": st.sampled_from([("linear", 0.5), ("cosine", 0.9), ("constant", 0.02), ("constant", 1.0)]),
    "progress": st.sampled_from([(0.0, 0.5), (0.5, 1.0), (0.0, 0.0)]),
    "at_least_one": st.just(False),
    "causal": st.just(True),
    "random": st.sampled_from([0.1, 1.0]),
    "keep": st.just(1.0),
}


def some_of(choices: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Changes of none, one or several."""
    names = st.lists(st.sampled_from(sorted(choices)), max_size=most, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: choices[name] for name in chosen}))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[World, World]:
    """Two worlds, of which the second often differs from the first in one thing or in nothing."""
    first = World(
        Below(Layout(32, 32, "bf16")),
        Above(),
        Drawn(**draw(some_of(DRAWN, 2))),
        tells_time=draw(st.booleans()),
    )
    second = evolve(
        first,
        below=evolve(first.below, **draw(some_of(BELOW, 2))),
        above=evolve(first.above, **draw(some_of(ABOVE, 1))),
        drawn=evolve(first.drawn, **draw(some_of(DRAWN, 2))),
        packed_anew=draw(st.sampled_from([0, 0, 0, 7, 31])),
        tells_time=draw(st.sampled_from([first.tells_time, first.tells_time, not first.tells_time])),
    )
    return first, second


@pytest.fixture(scope="module")
def rack(tmp_path_factory) -> Ran:
    """A finished run of three stacks, each with an adapter, and a head of its own."""
    changes = {
        "training.steps_per_stack": 4,
        "rack.tie_embeddings": False,
        "precision": {"active": "fp32", "trunk": "fp32"},
        "adapter": {"stack": {"use": "lora", "rank": 2}},
    }
    return run_tiny(tmp_path_factory.mktemp("rack"), changes)


@pytest.fixture(scope="module")
def splits(rack, tmp_path_factory) -> dict[tuple[int, int], Split]:
    """The training rows of Genesis, with its own, another first and another last letter, at either seq_len."""
    text, directory = TEXT.read_text(encoding="utf-8"), tmp_path_factory.mktemp("texts")
    found = {}
    for number, changed in enumerate((text, "X" + text[1:], text[:-2] + "X\n")):
        path = directory / f"{number}.txt"
        path.write_text(changed, encoding="utf-8")
        for seq_len in (32, 64):
            data = evolve(rack.setup.config.data, corpus=files(path), seq_len=seq_len)
            found[number, seq_len] = prepared(data, rack.setup.tokenizer).train
    return found


SCHEDULES = {
    "constant": lambda fraction: Constant(ConstantOptions(fraction)),
    "linear": lambda most: Linear(RangeOptions(max_fraction=most)),
    "cosine": lambda most: Cosine(RangeOptions(max_fraction=most)),
}


def draws_of(world: World, rack: Ran, splits: dict[tuple[int, int], Split]) -> Draws:
    """Four sequences as a world has them."""
    drawn, tokenizer = world.drawn, rack.setup.tokenizer
    schedule, fraction = drawn.schedule
    drawer = Drawer(
        split=splits[drawn.text, drawn.seq_len],
        noise=Noise(SCHEDULES[schedule](fraction)),
        seed=drawn.seed,
        mask_id=tokenizer.mask_id,
        progress=drawn.progress,
        at_least_one=drawn.at_least_one,
        causal=drawn.causal,
        corrupt=MLM(MLMOptions(min(drawn.random, 1 - drawn.keep), drawn.keep)).corrupt,
        vocab_size=tokenizer.vocab_size,
        stream=Stream.TRAINING,
    )
    draws = drawer.draw(SAMPLES, drawn.number)
    segments = draws.segments.clone()
    if world.packed_anew:
        segments[:, world.packed_anew :] += 1
    return evolve(draws, segments=segments)


def contents(draws: Draws, tells_time: bool) -> list[tuple[object, ...]]:
    """What of each sequence the trunk sees, and what its loss asks for."""
    batch, tokens = draws.inputs.shape
    masked = [{place % tokens for place in draws.masked.tolist() if place // tokens == row} for row in range(batch)]
    return [
        (draws.inputs[row].tolist(), masked[row], draws.segments[row].tolist(), draws.fraction[row].item() * tells_time)
        for row in range(batch)
    ]


def nudged(tensor: torch.Tensor, elements: Iterable[int]) -> torch.Tensor:
    """The tensor with some of its numbers replaced by the next ones above."""
    changed = tensor.detach().clone()
    for element in {each % changed.numel() for each in elements}:
        changed.view(-1)[element] = torch.nextafter(changed.view(-1)[element], torch.tensor(torch.inf))
    return changed


def nudge_all(tensors: dict[str, torch.Tensor], changes: Iterable[Weight]) -> dict[str, torch.Tensor]:
    """Tensors after changes; ``Weight.tensor`` is a part of a name, of which the first that has it is meant."""
    result, elements = dict(tensors), defaultdict[str, set[int]](set)
    for change in changes:
        elements[next(name for name in sorted(tensors) if change.tensor in name)].add(change.element)
    for name, chosen in elements.items():
        result[name] = nudged(tensors[name], chosen)
    return result


def write_adapter(directory: RunDirectory, index: int, config: bytes, tensors: dict[str, torch.Tensor]) -> None:
    def save(scratch: Path) -> None:
        (scratch / "adapter_config.json").write_bytes(config)
        save_file(tensors, scratch / "adapter_model.safetensors", metadata={"format": "pt"})

    directory.write_adapter(index, "stack", save)


@contextmanager
def changed(rack: Ran, below: Below, above: Above) -> Iterator[None]:
    """The rack with all that differs, in its run's directory and in its forward, while this lasts."""
    forward, directory = rack.engine.forward, rack.engine.files
    ends, spec, formats = forward.placement.ends(0), forward.placement.spec, forward.placement.loader.formats
    undo: list[Callable[[], object]] = []
    try:
        for index, changes in [*by_stack(below.weights), (2, above.weights)]:
            if changes:
                master = directory.read_stack(index)
                undo.append(partial(directory.write_stack, index, master))
                directory.write_stack(index, nudge_all(master, changes))
        for index, changes in by_stack(below.adapter):
            config, model = (
                directory.adapter(index, "stack") / name
                for name in ("adapter_config.json", "adapter_model.safetensors")
            )
            tensors, text = load_file(model), config.read_bytes()
            undo.append(partial(write_adapter, directory, index, text, tensors))
            write_adapter(directory, index, text, nudge_all(tensors, changes))
        for part, elements in ((ends.embed_tokens.weight, below.embedding), (ends.lm_head.weight, above.head)):
            undo.append(partial(part.data.copy_, part.detach().clone()))
            part.data.copy_(nudged(part, elements))
        forward.placement.spec = evolve(spec, **dict(below.spec))
        stacks = dict(below.precisions) | ({2: above.precision} if above.precision != "fp32" else {})
        adapter = formats.adapters["stack"]
        forward.placement.loader.formats = evolve(
            formats,
            trunk=precision(below.precision),
            stacks={index: precision(use) for index, use in stacks.items()},
            adapters={"stack": type(adapter)(evolve(adapter.options, alpha=below.alpha))},
        )
        yield
    finally:
        forward.placement.spec, forward.placement.loader.formats = spec, formats
        for each in undo:
            each()


@cache
def precision(use: str) -> Precision:
    """A precision with its options as they are by default."""
    registry = Registry.discover()
    built: Precision = registry.build(registry.resolve("precision", use), None, device="cpu")
    return built


def by_stack(changes: frozenset[tuple[int, Weight]]) -> list[tuple[int, set[Weight]]]:
    return [(index, {weight for stack, weight in changes if stack == index}) for index in {each[0] for each in changes}]


def settings_of(rack: Ran) -> dict[str, object]:
    """What the engine says of tokenizer and versions; once, since it looks through all that is installed."""
    if rack.engine not in SETTINGS:
        SETTINGS[rack.engine] = rack.engine.boundaries.settings
    return SETTINGS[rack.engine]


SETTINGS: dict[object, dict[str, object]] = {}


def name_of(rack: Ran, world: World) -> str:
    """The namespace of the boundary above the trunk."""
    with changed(rack, world.below, world.above):
        others = dict(world.below.settings)
        return namespace(
            provenance(rack.engine.placement, TRUNK, world.below.layout, world.below.chunk, settings_of(rack) | others)
        )


NOTHING_SEEN = World(Below(Layout(32, 32, "bf16")), Above(), Drawn(keep=1.0))
"""All masked tokens stay as they are: nothing but the mask tells draws of two seeds apart."""


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(worlds=pairs())
@example(worlds=(NOTHING_SEEN, evolve(NOTHING_SEEN, drawn=Drawn(keep=1.0, seed=4))))
def test_names_are_equal_if_and_only_if_all_below_and_the_draws_are(rack, splits, worlds):
    """Of two worlds a sequence's store and key are the same just when a boundary's bits must be."""
    one, other = worlds
    assert (name_of(rack, one) == name_of(rack, other)) == (one.below == other.below)
    ours, theirs = (draws_of(world, rack, splits) for world in worlds)
    our_keys, their_keys = draw_keys(ours, one.tells_time), draw_keys(theirs, other.tells_time)
    our_contents, their_contents = contents(ours, one.tells_time), contents(theirs, other.tells_time)
    for our_key, our_content in zip(our_keys, our_contents, strict=True):
        for their_key, their_content in zip(their_keys, their_contents, strict=True):
            same = our_content == their_content and one.tells_time == other.tells_time
            assert (our_key == their_key) == same


@pytest.mark.parametrize(
    ("table", "name"), [*(("below", name) for name in BELOW), *(("above", name) for name in ABOVE)]
)
def test_each_change_below_makes_another_store_and_none_above_does(rack, table, name):
    """One change alone, of each kind there is."""
    base = World(Below(Layout(32, 32, "bf16")), Above(), Drawn())
    part = getattr(base, table)
    world = evolve(base, **{table: evolve(part, **{name: ONE_OF_EACH[table][name]})})
    assert (name_of(rack, world) == name_of(rack, base)) == (table == "above")
    assert name_of(rack, base) == name_of(rack, base)


ONE_OF_EACH: dict[str, dict[str, Any]] = {
    "below": {
        "chunk": 8,
        "layout": Layout(32, 32, "fp32"),
        "weights": frozenset({(0, Weight(WEIGHTS[0], 5))}),
        "adapter": frozenset({(1, Weight("lora_B", 0))}),
        "embedding": frozenset({0}),
        "alpha": 1.0,
        "precision": "nvfp4",
        "precisions": frozenset({(1, "bf16")}),
        "spec": (("rope_theta", 500.0),),
        "settings": (("tokenizer", "other"),),
    },
    "above": {"weights": frozenset({Weight(WEIGHTS[0], 5)}), "head": frozenset({0}), "precision": "nvfp4"},
}


@pytest.fixture(scope="module")
def sharing(tmp_path_factory) -> tuple[Path, dict[str, Any], RunResult]:
    """A directory of boundaries, the changes that make a run use it, and what the first one came to."""
    directory = tmp_path_factory.mktemp("sharing")
    changes = {
        "training.epochs_per_stack": 2,
        "training.batch_size": 16,
        "training.masks_per_sample": 1,
        "evaluation": {"draws": 1, "sequences": 4},
        "cache_backend": {"use": "disk", "keep": "rack", "directory": str(directory / "boundaries")},
    }
    result = run_tiny(directory, changes).result
    assert result is not None
    return directory, changes, result


def computed(result: RunResult) -> list[int]:
    return [phase.boundaries_computed for phase in result.phases]


def test_the_same_run_again_computes_nothing(sharing):
    """A second run that differs in nothing reads every boundary from the first one's stores."""
    directory, changes, first = sharing
    again = run_tiny(directory, changes).result
    assert again.directory != first.directory
    assert computed(first) == [0, 100, 100]
    assert computed(again) == [0, 0, 0]
    assert [phase.boundaries_read for phase in again.phases] == [0, 200, 200]
    assert [phase.last_loss for phase in again.phases] == [phase.last_loss for phase in first.phases]


OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"run.seed": 4},
    "precision of the trunk": {"precision": {"active": "fp32", "trunk": "bf16"}},
    "masks": {"mask_schedule": {"use": "linear", "max_fraction": 0.8}},
    "weights": {"training.block_lr": 2e-3},
    "corpus": {},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_run_computes_everything(sharing, tmp_path, other):
    """What was kept of another seed, corpus, precision, schedule or learning rate is of no use."""
    directory, changes, first = sharing
    text = TEXT.read_text(encoding="utf-8")
    (tmp_path / "other.txt").write_text(text.replace("firmament", "expansion"), encoding="utf-8")
    corpus = {"data.corpus": str(tmp_path / "other.txt")} if other == "corpus" else {}
    result = run_tiny(directory, changes | OTHERS[other] | corpus).result
    assert computed(result) == computed(first)
