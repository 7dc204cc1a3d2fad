"""Adapters and quantised trunks in whole runs: they train, are saved, and are loaded by peft without Stackwise."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_bitsandbytes.layers import FrozenLinear8bit
from stackwise_cache.disk import DiskStore
from stackwise_core.config.load import load
from stackwise_core.engine.boundary.namespace import namespace, provenance
from stackwise_core.engine.evaluation.finished import FinishedRun
from stackwise_core.engine.evaluation.validation import Validation
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.phases.phase_boundaries import boundary_layout
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.errors import UsageError
from tests.same_numbers import assert_same_numbers
from tests.tiny import TEXT, Ran, backward, run_tiny, tiny_config

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
NF4 = {"use": "nf4", "compute": "fp32"}
LORA = {"use": "lora", "rank": 4}
DUAL = {"stack": LORA, "trunk": {"use": "lora", "rank": 2, "target_modules": ["q_proj", "down_proj"]}}
GROWING = {"use": "progressive", "trunk": "adapters"}
SMALL = {"stacks": 2, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2}


def plan_of(directory, changes):
    return make_plan(set_up(*tiny_config(directory, changes)))


def losses_of_phases(ran: Ran, name: str) -> list[float]:
    return [event.loss for event in ran.events if hasattr(event, "grad_norm") and event.planned.phase.name == name]


@pytest.fixture(scope="module")
def dual(tmp_path_factory) -> Ran:
    """Three stacks that grow over an nf4 trunk, each with an adapter of its own, and the trunk with another."""
    return run_tiny(
        tmp_path_factory.mktemp("dual"),
        {
            "adapter": DUAL,
            "precision": {"trunk": NF4},
            "trainer_mode": GROWING | {"finale": 0.3},
            "training.adapter_lr": 1e-2,
            "training.epochs_per_stack": 2,
        },
    )


@pytest.fixture(scope="module")
def blockwise(tmp_path_factory) -> Ran:
    """Three stacks over an nf4 trunk, whose adapters train on the boundaries that the stacks trained on."""
    return run_tiny(
        tmp_path_factory.mktemp("blockwise"),
        {"adapter": {"stack": LORA, "share": 0.4}, "precision": {"trunk": NF4}, "training.epochs_per_stack": 5},
    )


@pytest.fixture
def without_stackwise(tmp_path, monkeypatch):
    """The module that docs/adapters.md shows, which imports nothing of Stackwise."""
    (source,) = re.findall(r"^<!-- file: rack_by_peft.py -->\n```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert "stackwise" not in source
    (tmp_path / "rack_by_peft.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import rack_by_peft

    yield rack_by_peft
    del sys.modules["rack_by_peft"]


@torch.no_grad()
def test_peft_loads_a_rack_of_two_adapters_a_stack(dual, without_stackwise):
    """transformers' blocks over bitsandbytes' weights with peft's adapters give our logits, to the bit."""
    rows = dual.setup.corpus.validation.rows(range(6))
    ids = torch.tensor(rows.tokens.astype("int64"))
    ids[:, ::3] = dual.setup.tokenizer.mask_id
    theirs = without_stackwise.logits(dual.directory, ids)

    finished = FinishedRun.open(dual.directory)
    forward, path = finished.forward, (0, 1, 2)
    forward.placement.bring(path, active=finished.active)
    hidden, context = forward.embed(0, ids, torch.zeros(6)), forward.context(torch.ones_like(ids))
    for index in path:
        hidden = forward.through(index, hidden, context)
    ours = forward.placement.ends(2).logits(hidden, forward.placement.stack(2).norm)
    assert_same_numbers(ours, theirs)

    # The adapters have a part in it.
    directory = dual.engine.files
    assert [directory.adapters(index) for index in path] == [["stack", "trunk"], ["stack", "trunk"], ["stack"]]
    for index, name in ((0, "stack"), (0, "trunk"), (2, "stack")):
        lora_b = forward.placement.stack(index).layers[0].self_attn.q_proj.lora_B[name].weight
        kept = lora_b.clone()
        lora_b.zero_()
        hidden = forward.embed(0, ids, torch.zeros(6))
        for each in path:
            hidden = forward.through(each, hidden, context)
        assert not torch.equal(forward.placement.ends(2).logits(hidden, forward.placement.stack(2).norm), ours)
        lora_b.copy_(kept)


@pytest.fixture
def gains(tmp_path):
    """The configuration of docs/hooks/adapter.md, beside its plugin."""
    page = (PAGE.parent / "hooks" / "adapter.md").read_text()
    for name, text in re.findall(r"^<!-- file: (gains\.\w+) -->\n```\w+\n(.*?)^```$", page, re.M | re.S):
        (tmp_path / name).write_text(text)
    yield tmp_path / "gains.toml"
    sys.modules.pop("gains", None)


def test_the_adapter_of_the_hook_s_page_trains(gains):
    """A stranger's adapter over nf4 is as good as ours."""
    small = ["rack.stacks=2", "rack.blocks_per_stack=1", "rack.d_model=32", "rack.n_heads=2", "data.seq_len=32"]
    small += [f"data.corpus={TEXT}", f"run.directory={gains.parent}", "training.steps_per_stack=4"]
    config, registry = load(gains, overrides=[*small, "evaluation.sequences=4"], environ={})
    setup = set_up(config, registry)
    result = Engine(setup, make_plan(setup), registry, lambda event: None).run()
    assert [phase.name for phase in result.phases] == ["stack 0", "stack 0, adapter", "stack 1", "stack 1, adapter"]
    trained = load_file(result.directory / "adapters/000/stack/gains.safetensors")
    assert trained.keys() == {"layers.0"}
    assert all((gain != 1).any() for gain in trained.values())


def test_every_adapter_weight_gets_a_gradient(dual):
    """In the finale, in which all of them train at once, and nothing else does."""
    engine, (*_, finale) = dual.engine, dual.plan.phases
    engine.placement.place(finale.phase)
    backward(engine, finale, range(8))
    trainable = engine.placement.trainable()
    assert {name.split(".")[0] for name, _ in trainable} == {"adapters"}
    assert {(int(name.split(".")[1]), name.split(".")[-2]) for name, _ in trainable} == set(finale.phase.adapters)
    assert all(parameter.grad.abs().max() > 0 for _, parameter in trainable)
    others = {id(parameter) for _, parameter in trainable}
    for index in range(3):
        assert all(each.grad is None for each in engine.placement.stack(index).parameters() if id(each) not in others)


def test_adapters_learn(tmp_path):
    """Each phase of adapters alone makes the loss of what it trains on smaller, over weights that stay."""
    text = tmp_path / "runs.txt"
    letters = torch.randint(8, (90,), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text("".join("abcdefgh"[letter] * 32 for letter in letters))
    lost: dict[str, list[float]] = {}

    def watch(ran):
        engine = ran.engine
        place, write = engine.placement.place, engine.record.write_phase

        def measure(phase):
            (planned,) = (planned for planned in ran.plan.phases if planned.phase is phase)
            drawer = engine.training_drawer(planned)
            objective = engine.objective(planned)
            on_draws = Validation(drawer, objective, every=1, sequences=None, batch_size=32)
            lost.setdefault(phase.name, []).append(on_draws.loss(engine.forward, phase.path))

        def placed(phase, **options):
            place(phase, **options)
            measure(phase)

        def writing(planned, *others):
            measure(planned.phase)
            write(planned, *others)

        engine.placement.place, engine.record.write_phase = placed, writing

    run_tiny(
        tmp_path,
        {
            "rack": SMALL,
            "data.corpus": str(text),
            "adapter": {"stack": {"use": "lora", "rank": 8}, "trunk": {"use": "lora", "rank": 8}, "share": 0.8},
            "precision": {"trunk": NF4},
            "trainer_mode": GROWING | {"finale": 0.4},
            "training.epochs_per_stack": 3,
            "training.masks_per_sample": 1,
            "training.block_lr": 1e-2,
            "training.embedding_lr": 1e-2,
            "training.adapter_lr": 1e-2,
        },
        before=watch,
    )
    assert list(lost) == ["stack 0", "stack 0, adapter", "stack 1", "stack 1, adapter", "finale"]
    for name in ("stack 0, adapter", "stack 1, adapter", "finale"):
        before, after = lost[name]
        assert after < before - 0.01, (name, before, after)


DROPPING = {
    "rack": SMALL,
    "adapter": {"stack": LORA | {"dropout": 0.5}, "trunk": LORA | {"dropout": 0.5}},
    "precision": {"trunk": NF4},
    "trainer_mode": GROWING,
    "training.epochs_per_stack": 1,
    "training.adapter_lr": 1e-2,
}


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> Ran:
    """A run whose adapters drop half of their inputs."""
    return run_tiny(tmp_path_factory.mktemp("dropping"), DROPPING)


def test_dropout_is_the_same_again(dropping, tmp_path):
    """Two runs come to the same losses and the same files, to the bit; without dropout they are others."""
    again = run_tiny(tmp_path / "again", DROPPING)
    without = run_tiny(tmp_path / "without", DROPPING | {"adapter": {"stack": LORA, "trunk": LORA}})
    assert again.losses == dropping.losses
    for stack, name in ((0, "stack"), (0, "trunk"), (1, "stack")):
        files = [ran.directory / f"adapters/00{stack}/{name}/adapter_model.safetensors" for ran in (again, dropping)]
        assert files[0].read_bytes() == files[1].read_bytes()
    adapting = [planned.phase.name for planned in dropping.plan.phases if planned.phase.adapts]
    assert losses_of_phases(without, "stack 0") == losses_of_phases(dropping, "stack 0")
    assert all(losses_of_phases(without, name) != losses_of_phases(dropping, name) for name in adapting)


def test_dropout_is_for_training_steps_only(dropping):
    """Boundaries and evaluation are computed without gradients, and so without it."""
    forward = dropping.engine.forward
    forward.placement.bring((0,), active=())
    hidden, context = torch.randn(2, 32, 32, device=forward.device), forward.context(torch.ones(2, 32))

    def twice() -> list[torch.Tensor]:
        return [forward.through(0, hidden, context).detach() for _ in range(2)]

    first, second = twice()
    assert not torch.equal(first, second)
    with torch.no_grad():
        first, second = twice()
        assert torch.equal(first, second)
        assert torch.equal(first, forward.placement.stack(0).eval()(hidden, context))


def test_a_boundary_s_name_is_about_its_adapters(dual, tmp_path):
    """Another weight of an adapter, another alpha, or no adapter: another name, so that nothing stale is ever read."""
    engine, phase = dual.engine, dual.plan.phases[3].phase
    assert phase.frozen_prefix == (0,)
    forward, directory, layout = engine.forward, engine.files, boundary_layout(phase, dual.setup)
    forward.placement.bring((0,), active=())

    def name() -> str:
        return namespace(provenance(forward.placement, (0,), layout, 16, engine.boundaries.settings))

    whole = name()
    weight = forward.placement.stack(0).layers[0].mlp.down_proj.lora_A["trunk"].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1e-6
    directory.write_adapter(0, "trunk", partial(forward.placement.save_adapter, 0, "trunk"))
    assert name() != whole
    with torch.no_grad():
        weight.copy_(kept)
    directory.write_adapter(0, "trunk", partial(forward.placement.save_adapter, 0, "trunk"))
    assert name() == whole

    louder = {**DUAL, "trunk": DUAL["trunk"] | {"alpha": 33.0}}
    changes = {"adapter": louder, "precision": {"trunk": NF4}, "trainer_mode": GROWING}
    formats, other = forward.placement.loader.formats, set_up(*tiny_config(tmp_path, changes)).implementations.formats
    forward.placement.loader.formats = evolve(formats, adapters=other.adapters)
    assert name() != whole
    forward.placement.loader.formats = formats
    assert name() == whole


def test_an_adapter_s_phase_reads_what_its_stack_computed(blockwise):
    """One store of boundaries serves both, and the boundary of the stack above is made from it."""
    measured = {phase.name: phase for phase in blockwise.result.phases}
    planned = {each.phase.name: each for each in blockwise.plan.phases}
    samples = len(blockwise.setup.corpus.train)
    for stack in (1, 2):
        main, adapter = measured[f"stack {stack}"], measured[f"stack {stack}, adapter"]
        assert (main.boundaries_computed, main.boundaries_read) == (2 * samples, 3 * samples)
        assert (adapter.boundaries_computed, adapter.boundaries_read) == (0, 2 * samples)
        assert planned[f"stack {stack}, adapter"].same_boundary
    assert [name for name, each in planned.items() if each.made_from_below] == ["stack 2"]
    assert planned["stack 2"].flops == pytest.approx(planned["stack 1"].flops, rel=0.05)
    assert not any("trained on once" in note for note in blockwise.plan.notes)


def test_a_boundary_is_made_by_one_stack(tmp_path):
    """Above a stack and its adapter, only these two are run; and the losses are those of a run without a cache."""
    ran_in_phase: dict[str, set[int]] = {}

    def watch(ran):
        forward, listener = ran.engine.forward, ran.engine.listener
        through, phase = forward.through, [""]

        def watched(index, hidden, context):
            if not torch.is_grad_enabled():
                ran_in_phase.setdefault(phase[0], set()).add(index)
            return through(index, hidden, context)

        def listen(event):
            phase[0] = event.planned.phase.name if type(event).__name__ == "PhaseStarted" else phase[0]
            listener(event)

        forward.through, ran.engine.listener = watched, listen

    changes = {"adapter": {"stack": LORA}, "precision": {"trunk": NF4}, "data.validation_fraction": 0.0}
    cached = run_tiny(tmp_path / "cached", changes, before=watch)
    assert ran_in_phase == {"stack 1": {0}, "stack 2": {1}}
    live = run_tiny(tmp_path / "live", changes | {"cache_backend": None})
    assert cached.losses == live.losses


def test_disk_is_what_the_cache_takes(tmp_path, monkeypatch):
    """With the boundaries of a stack and its adapter in one store, the plan counts what the shards hold."""
    most, put, phase = dict[str, int](), DiskStore.put, [""]

    def measured(store, keys, entries):
        put(store, keys, entries)
        held = sum(shard.stat().st_size for shard in tmp_path.glob("runs/*/cache/*/*.safetensors"))
        most[phase[0]] = max(most.get(phase[0], 0), held)

    def watch(ran):
        listener = ran.engine.listener

        def listen(event):
            if type(event).__name__ == "PhaseStarted":
                phase[0] = event.planned.phase.name
            listener(event)

        ran.engine.listener = listen

    monkeypatch.setattr(DiskStore, "put", measured)
    changes = {
        "adapter": {"stack": LORA},
        "precision": {"trunk": NF4},
        "cache_backend": {"use": "disk", "shard_entries": 4},
        "data.validation_fraction": 0.0,
    }
    ran = run_tiny(tmp_path, changes, before=watch)
    for planned in ran.plan.phases[2:]:
        if planned.phase.name in most:
            assert planned.disk == pytest.approx(most[planned.phase.name], rel=0.1), planned.phase.name
    assert len(most) == 2


def test_the_plan_says_where_the_cache_is_off(tmp_path):
    """And why: in the phases in which a trunk's adapters train, not in those of a new stack's own."""
    changes = {"adapter": DUAL, "precision": {"trunk": NF4}}
    (said,) = [
        note
        for note in plan_of(tmp_path, changes | {"trainer_mode": GROWING | {"finale": 0.2}}).notes
        if "cache is off" in note
    ]
    assert said == (
        "The cache is off in stack 1, stack 2, finale: adapters train in the trunk, so that its boundary changes with "
        "every step."
    )
    copies = changes | {"trainer_mode": GROWING | {"start": "copy"}, "adapter": DUAL | {"active": "adapters"}}
    assert any("off in stack 1, stack 2:" in note for note in plan_of(tmp_path, copies).notes)
    for quiet in (
        {**changes, "adapter": {"stack": LORA}},
        {**changes, "trainer_mode": GROWING | {"building": "prepend"}},
        {**changes, "trainer_mode": GROWING, "cache_backend": None},
    ):
        assert not any("cache is off" in note for note in plan_of(tmp_path, quiet).notes)


def test_reading_a_boundary_in_both_phases_counts(tmp_path):
    """A boundary that its stack and the adapter train on isn't said to be trained on once; one of neither is."""
    once = {"training.epochs_per_stack": 2, "adapter": {"stack": LORA, "share": 0.5}, "precision": {"trunk": NF4}}
    assert any("trained on once" in note for note in plan_of(tmp_path, once).notes)
    twice = once | {"training.masks_per_sample": 1}
    assert not any("trained on once" in note for note in plan_of(tmp_path, twice).notes)


def test_stacks_have_precisions_of_their_own(tmp_path):
    """A frozen stack is at the one that precision.stacks names, on disk too, and the plan counts its bytes."""
    changes = {
        "precision": {"trunk": NF4, "stacks": {0: {"use": "bf16"}, 1: {"use": "int8"}}},
        "training.steps_per_stack": 2,
        "rack.stacks": 4,
    }
    ran = run_tiny(tmp_path, changes)
    forward = ran.engine.forward
    forward.placement.bring(range(4), active={3})
    projections = [forward.placement.stack(index).layers[0].self_attn.q_proj for index in range(4)]
    assert projections[0].weight.dtype == torch.bfloat16
    assert isinstance(projections[1], FrozenLinear8bit)
    assert projections[2].weight.quant_state.quant_type == "nf4"
    assert projections[3].weight.dtype == torch.float32
    # bf16 isn't quantised: it is made from the masters each time.
    assert sorted(file.name for file in (ran.directory / "trunk").iterdir()) == ["001.safetensors", "002.safetensors"]

    formats, spec = ran.setup.implementations.formats, ran.setup.spec
    held = [
        round(formats.precision(stack, "trunk").bytes_per_weight * spec.stack_parameters(stack)) for stack in range(3)
    ]
    assert held[0] == 2 * spec.stack_parameters(0)
    in_full = 4 * (spec.stack_parameters(3) + spec.embedding_parameters)
    assert ran.plan.phases[3].memory.weights == sum(held) + in_full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer_mode": GROWING}, 'phase "stack 1" trains adapters, and there are none'),
        (
            {"trainer_mode": {"use": "fused", "fusion": "trainable"}, "precision": {"trunk": NF4}},
            'phase "stacks 0-1" goes on training stack 0, whose weights can\'t train',
        ),
        ({"adapter": DUAL}, "adapter.trunk: no phase trains the trunk's adapters"),
        ({"adapter": {"stack": LORA, "active": "adapters"}}, "every stack that joins begins at random"),
        (
            {"adapter": {"stack": {"use": "pissa"}, "attach": "birth"}},
            'adapter.attach = "birth": pissa begins from a stack\'s finished weights',
        ),
        (
            {"adapter": {"stack": {"use": "pissa"}}, "precision": {"trunk": NF4}},
            'adapter.stack = "pissa" can\'t stand on stack 0, whose weights are quantised when it is frozen: it begins',
        ),
        ({"adapter": {"stack": LORA}, "training.steps_per_stack": 1}, "none of its steps"),
        (
            {"precision": {"stacks": {3: NF4}}},
            "precision.stacks names stack 3, and the rack's stacks are 0 to 2.",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_runs(tmp_path, changes, message):
    """With the real precisions and adapters, by the plan."""
    with pytest.raises(UsageError) as refused:
        plan_of(tmp_path, changes)
    assert message in str(refused.value)


def test_restored_masters_are_quantised_again(tmp_path):
    """With ``restore`` the backbone trains in full and ends at the trunk's precision; the newest stack stays active."""
    restoring = {"precision": {"trunk": NF4}, "trainer_mode": {"use": "fused", "fusion": "trainable", "restore": True}}
    ran = run_tiny(tmp_path, restoring)
    assert json.loads((ran.directory / "finished.json").read_text())["active"] == [2]
    assert sorted(path.name for path in (ran.directory / "trunk").iterdir()) == ["000.safetensors", "001.safetensors"]
    finished = FinishedRun.open(ran.directory)
    again = finished.likelihoods(finished.evaluation(*finished.text(None)))
    assert again[-1].nats_per_token == ran.result.likelihoods[-1].nats_per_token


def test_what_is_evaluated_is_left_as_it_is(tmp_path):
    """A finished run whose quantised copies are gone is measured all the same, and nothing is written into it."""
    ran = run_tiny(tmp_path, {"precision": {"trunk": NF4}})
    shutil.rmtree(ran.directory / "trunk")
    before = {path: path.stat().st_mtime_ns for path in ran.directory.rglob("*")}
    finished = FinishedRun.open(ran.directory)
    again = finished.likelihoods(finished.evaluation(*finished.text(None)))
    assert again[-1].nats_per_token == ran.result.likelihoods[-1].nats_per_token
    assert {path: path.stat().st_mtime_ns for path in ran.directory.rglob("*")} == before
