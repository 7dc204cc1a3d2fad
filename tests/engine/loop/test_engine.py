import hashlib
import json

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_core.config.load import load
from stackwise_core.engine.events.events import (
    BoundaryProgress,
    PhaseDone,
    PhaseStarted,
    RunDone,
    RunStarted,
    StepDone,
    Validated,
)
from stackwise_core.engine.loop.engine import Engine
from stackwise_core.engine.loop.step_batches import StepBatches
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.rack.rack import new_stack
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.engine.runs.software import software
from stackwise_core.errors import StackwiseError, UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.routing import Route
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.run_files.names import embedding_file
from stackwise_core.run_files.stored_boundaries import read_records
from tests.tiny import Ran, run_tiny, telling, tiny_config


def hashes(ran: Ran) -> dict[str, str]:
    """A hash of every weight of the rack, from memory or, where a stack isn't there, from its master on disk."""
    forward, tensors = ran.engine.forward, {}
    for owner, ends in forward.placement.all_ends():
        where = "ends" if owner is None else f"ends.{owner}"
        tensors |= {f"{where}.{name}": tensor for name, tensor in ends.state_dict().items()}
    for index in range(ran.setup.spec.stacks):
        state = {}
        if index in forward.placement:
            state = forward.placement.stack(index).state_dict()
        elif ran.engine.files.has_stack(index):
            state = ran.engine.files.read_stack(index)
        tensors |= {f"stacks.{index}.{name}": tensor for name, tensor in state.items()}
    return {
        name: hashlib.sha256(tensor.float().cpu().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()
    }


def named_by(phase: Phase, ran: Ran) -> set[str]:
    """Every tensor that a phase says it trains."""
    # Of the exit norms only the last one of the path is read out, and so has a gradient.
    named = {
        f"stacks.{index}.{name}"
        for index in phase.trains
        for name in ran.engine.placement.stack(index).state_dict()
        if index == phase.path[-1] or not name.startswith("norm.")
    }
    own = ran.setup.spec.ends == "per_stack"
    below, above = (f"ends.{phase.path[place]}" if own else "ends" for place in (0, -1))
    timed = {f"{below}.embed_time.weight"} if ran.setup.spec.time_encoding else set()
    named |= {f"{below}.embed_tokens.weight"} | timed if phase.embedding else set()
    named |= {f"{above}.lm_head.weight"} if phase.head and not ran.setup.spec.tie_embeddings else set()
    return named


def changed_by_phase(tmp_path, changes) -> tuple[Ran, list[set[str]], list[set[str]]]:
    """For each phase the names of the tensors that it changed, by their hashes, and of those that it should."""
    changed, expected, before = [], [], {}

    def watch(ran: Ran) -> None:
        forward, listener = ran.engine.forward, ran.engine.listener
        place = forward.placement.place

        def placed(phase, **options):
            place(phase, **options)
            before.clear()
            before.update(hashes(ran))
            trainable = sum(parameter.numel() for _, parameter in forward.placement.trainable())
            (planned,) = [planned for planned in ran.plan.phases if planned.phase is phase]
            assert planned.trainable_parameters == trainable

        def listen(event):
            if isinstance(event, PhaseDone):
                after = hashes(ran)
                assert after.keys() == before.keys()
                changed.append({name for name in after if after[name] != before[name]})
                expected.append(named_by(event.planned.phase, ran))
            listener(event)

        forward.placement.place = placed
        ran.engine.listener = listen

    ran = run_tiny(tmp_path, changes, before=watch)
    assert len(changed) == len(ran.plan.phases)
    return ran, changed, expected


APPEND = {"use": "progressive"}
PREPEND = {"use": "progressive", "building": "prepend"}
MODES = {
    "blockwise": {"use": "blockwise"},
    "blockwise, copies": {"use": "blockwise", "start": "copy"},
    "layerwise": {"use": "layerwise"},
    "append": APPEND,
    "append, zero output": APPEND | {"start": "zero_output", "target_stacks": 3},
    "append, finale": APPEND | {"start": "copy", "finale": 0.3},
    "append, stackwise finale": APPEND | {"finale": 0.5, "finale_scope": "stackwise", "cycles": 2},
    "prepend": PREPEND,
    "prepend, zero output": PREPEND | {"start": "zero_output", "target_stacks": 3},
    "prepend, finale": PREPEND | {"start": "copy", "finale": 0.5, "finale_scope": "stackwise"},
    "fused, frozen": {"use": "fused", "start": "copy"},
    "fused, trainable": {"use": "fused", "fusion": "trainable"},
    "end to end": {"use": "end_to_end"},
    "end to end, stackwise": {"use": "end_to_end", "scope": "stackwise", "cycles": 2},
    "banded, interleaved": {"use": "banded", "cycles": 2},
    "banded, after first": {"use": "banded", "shared": "after_first", "cycles": 2, "widen": 0.5},
    "banded, per stack": {"use": "banded", "shared": "per_stack", "cycles": 2},
}
SMALL = {"stacks": 2, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_just_what_the_plan_says_changes(tmp_path, mode):
    """Each phase changes every tensor that it trains, and no other by a bit; the plan has counted them."""
    rack = SMALL | {"tie_embeddings": False, "blocks_per_stack": 2 if mode == "layerwise" else 1}
    _, changed, expected = changed_by_phase(
        tmp_path, {"trainer_mode": MODES[mode], "rack": rack, "training.epochs_per_stack": 1}
    )
    assert changed == expected


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blockwise", "append", "fused, frozen", "end to end, stackwise", "prepend"])
def test_a_head_that_trains_changes_in_every_phase(tmp_path, mode):
    """With head = "trains" it goes on in the phases that would else leave it."""
    _, changed, expected = changed_by_phase(
        tmp_path,
        {
            "trainer_mode": MODES[mode],
            "rack": SMALL | {"tie_embeddings": False},
            "training.head": "trains",
            "training.epochs_per_stack": 1,
        },
    )
    assert changed == expected
    assert all("ends.lm_head.weight" in names for names in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["append, finale", "banded, interleaved", "banded, after first", "banded, per stack", "fused, trainable"]
)
def test_a_tied_head_changes_with_the_embedding_and_the_time_with_both(tmp_path, mode):
    """A tied rack that is told the time trains both embeddings where the plan says so, and neither elsewhere."""
    ran, changed, expected = changed_by_phase(
        tmp_path,
        {"trainer_mode": MODES[mode], "rack": SMALL, "training.time": "input", "training.epochs_per_stack": 1},
    )
    assert changed == expected
    embeddings = [planned.phase.embedding for planned in ran.plan.phases]
    assert [any(name.endswith("embed_time.weight") for name in names) for names in changed] == embeddings


@pytest.mark.slow
def test_the_plan_is_told_before_weights_are_drawn(tmp_path):
    """Embedding and head, which may be large, come into memory and onto the disk after the run has started."""
    found = []

    def look(event, directory):
        if isinstance(event, RunStarted | PhaseStarted) and len(found) < 2:
            found.append((len(list(ran[0].engine.placement.all_ends())), (directory / embedding_file(None)).exists()))

    ran = []

    def before(of):
        ran.append(of)
        telling(look)(of)

    run_tiny(tmp_path, {"training.epochs_per_stack": 1, "rack.stacks": 1}, before=before)
    assert found == [(0, False), (1, True)]


@pytest.mark.parametrize(
    ("mode", "start"),
    [
        (mode, start)
        for mode in ("blockwise", "append", "prepend", "fused, trainable")
        for start in ("copy", "zero_output")
    ],
)
def test_a_new_stack_begins_as_asked(tmp_path, mode, start):
    """At its phase's first step a copy is its neighbour's master to the bit; zero output hands the hidden states on."""
    begun = []

    def watch(ran: Ran) -> None:
        forward = ran.engine.forward
        place = forward.placement.place

        def placed(phase, **options):
            place(phase, **options)
            new = [stack for stack in phase.path if not ran.engine.files.has_stack(stack)]
            if len(phase.path) == 1:
                return
            (stack,) = new
            state = forward.placement.stack(stack).state_dict()
            neighbour = stack + 1 if mode == "prepend" else stack - 1
            if start == "copy":
                master = ran.engine.files.read_stack(neighbour)
                assert all(torch.equal(state[name].cpu(), master[name]) for name in master)
            else:
                hidden = torch.randn(2, 32, 32, device=forward.device)
                context = forward.context(torch.ones(2, 32))
                assert torch.equal(forward.through(stack, hidden, context), hidden)
            begun.append(stack)

        forward.placement.place = placed

    changes = {"trainer_mode": MODES[mode] | {"start": start}, "training.steps_per_stack": 2}
    run_tiny(tmp_path, changes, before=watch)
    assert begun == ([1, 0] if mode == "prepend" else [1, 2])


def losses_by_phase(ran: Ran) -> dict[str, list[float]]:
    by_phase: dict[str, list[float]] = {}
    for event in ran.events:
        if isinstance(event, StepDone):
            by_phase.setdefault(event.planned.phase.name, []).append(event.loss)
    return by_phase


@pytest.mark.slow
@pytest.mark.parametrize("index", ["build", "position"])
def test_a_prepended_stack_learns_below_frozen_ones(tmp_path, index):
    """Through the frozen stack above, which stays as it was to the bit, its loss on equal masks falls."""
    tops = []

    def watch(ran: Ran) -> None:
        listener = ran.engine.listener

        def listen(event):
            if isinstance(event, PhaseDone):
                tops.append((ran.engine.files.path / "stacks/001.safetensors").read_bytes())
            listener(event)

        ran.engine.listener = listen

    ran = run_tiny(
        tmp_path,
        {
            "trainer_mode": PREPEND,
            "training.over": "depth",
            "training.noise_index": index,
            "training.epochs_per_stack": 4,
            "training.masks_per_sample": 1,
            "training.block_lr": 1e-2,
            # The stack on top learns so little that there is something left to learn below it.
            "training.stack_lr_multipliers": {1: 0.03},
            "rack.stacks": 2,
        },
        before=watch,
    )
    assert len(set(tops)) == 1
    losses, epoch = losses_by_phase(ran), ran.engine.order.steps_per_epoch()
    assert list(losses) == ["stack 1", "stack 0"]
    first, last = losses["stack 0"][:epoch], losses["stack 0"][-epoch:]  # every sample once, under its one mask
    assert sum(last) / epoch < sum(first) / epoch - 0.03
    # Each phase's draws have the mask fraction of its stack's place.
    drawn = [ran.engine.training_drawer(planned).draw([0], 0).fraction.item() for planned in ran.plan.phases]
    assert drawn == pytest.approx([0.15, 0.9] if index == "build" else [0.9, 0.15])


def test_a_banded_phase_has_just_its_own_stack_in_memory(tmp_path):
    """Other stacks aren't there, nor are other stacks' own embeddings and heads."""
    seen = set()

    def watch(ran: Ran) -> None:
        forward = ran.engine.forward
        phase = ran.engine.phase

        def built(planned, boundary, *others):
            made = phase(planned, boundary, *others)
            (stack,) = planned.phase.path
            assert boundary is None
            draws = ran.engine.training_drawer(planned).draw(range(4), 0)
            batches = StepBatches.of([draws], 0, ran.engine.objective(planned), forward.device)
            made.step.backward(batches, seed=0, factor=1.0)
            assert [index in forward.placement for index in range(3)] == [index == stack for index in range(3)]
            assert [owner for owner, _ in forward.placement.all_ends()] == [stack]
            for parameter in (
                *forward.placement.stack(stack).parameters(),
                *forward.placement.ends(stack).parameters(),
            ):
                assert parameter.grad.any()
                parameter.grad = None
            seen.add(stack)
            return made

        ran.engine.phase = built

    mode = {"use": "banded", "shared": "per_stack", "cycles": 1}
    changes = {"trainer_mode": mode, "training.steps_per_stack": 3, "rack.tie_embeddings": False}
    ran = run_tiny(tmp_path, changes, before=watch)
    assert seen == {0, 1, 2}
    files = {path.name for path in ran.directory.glob("stacks/*")}
    kinds = ("", ".embedding", ".head")
    assert files == {f"{stack:03d}{kind}.safetensors" for stack in range(3) for kind in kinds}
    for kind in kinds:
        assert len({(ran.directory / f"stacks/{stack:03d}{kind}.safetensors").read_bytes() for stack in range(3)}) == 3
    assert not (ran.directory / "embedding.safetensors").exists()


def visits(tmp_path, changes) -> list[tuple[list[int], list[int], str]]:
    """The samples of every step of a run in order, their input ids, and how its draw is numbered."""
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    plan = make_plan(setup)
    engine = Engine(setup, plan, registry, lambda event: None)
    return [
        (batch.draws.samples.tolist(), batch.draws.inputs.tolist(), step.number)
        for planned in plan.phases
        for step in engine.draws(planned, None, lambda event: None).after(0)
        for batch in step.batches
    ]


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["fixed", "resampled"])
@pytest.mark.parametrize("budget", [{"training.epochs_per_stack": 2}, {"training.steps_per_stack": 24}])
def test_cycles_go_through_the_samples_as_one_run_does(tmp_path, budget, masks):
    """Phases of a fraction of an epoch go on where the one before stopped: the same samples under the same masks."""
    changes = budget | {"training.masks": masks, "training.batch_size": 6}
    at_once = visits(tmp_path, changes | {"trainer_mode": {"use": "end_to_end"}})
    for cycles in (3, 4):
        mode = {"use": "end_to_end", "scope": "stackwise", "cycles": cycles}
        in_turn = visits(tmp_path, changes | {"trainer_mode": mode})
        assert in_turn == at_once
    samples = len(set_up(*tiny_config(tmp_path, changes)).corpus.train)
    assert sorted(s for members, _, _ in at_once[: -(-samples // 6)] for s in members) == list(range(samples))


@pytest.mark.parametrize("budget", [{"training.epochs_per_stack": 2}, {"training.steps_per_stack": 24}])
def test_the_bands_of_a_cycle_share_its_samples(tmp_path, budget):
    """Each stack of a banded rack goes through the text on its own, cycle by cycle, in the same order."""
    config, registry = tiny_config(tmp_path, budget | {"trainer_mode": {"use": "banded", "cycles": 4}})
    setup = set_up(config, registry)
    plan = make_plan(setup)
    engine = Engine(setup, plan, registry, lambda event: None)
    by_stack: dict[int, list] = {0: [], 1: [], 2: []}
    for planned in plan.phases:
        for step in engine.draws(planned, None, lambda event: None).after(0):
            samples = [batch.draws.samples.tolist() for batch in step.batches]
            by_stack[planned.phase.path[0]] += [(each, step.number) for each in samples]
    alone = visits(tmp_path, budget | {"trainer_mode": {"use": "end_to_end"}, "rack.stacks": 1})
    assert by_stack[0] == by_stack[1] == by_stack[2] == [(samples, number) for samples, _, number in alone]


def test_a_factor_of_nothing_freezes_a_stack_and_nothing_else(tmp_path):
    """stack_lr_multipliers = { 1 = 0 } leaves that stack as it began, to the bit, while the others train."""
    changes = {"trainer_mode": {"use": "end_to_end"}, "training.epochs_per_stack": 1}
    ran = run_tiny(tmp_path, changes | {"training.stack_lr_multipliers": {1: 0.0}})
    for index in range(3):
        begun = new_stack(ran.setup.spec, index, ran.setup.config.run.seed).state_dict()
        ended = load_file(ran.directory / f"stacks/{index:03d}.safetensors")
        moved = {name for name in ended if not torch.equal(ended[name], begun[name])}
        read = {"norm.weight"} if index < 2 else set()
        assert moved == (set() if index == 1 else set(ended) - read)


def test_a_phase_s_factor_is_on_all_its_learning_rates(tmp_path):
    """A finale with a factor of 0 changes nothing, whatever the phases before it did."""
    ended = []

    def watch(ran: Ran) -> None:
        listener = ran.engine.listener

        def listen(event):
            if isinstance(event, PhaseDone):
                files = sorted(ran.engine.files.path.glob("**/*.safetensors"))
                ended.append([path.read_bytes() for path in files])
            listener(event)

        ran.engine.listener = listen

    mode = APPEND | {"finale": 0.5, "finale_lr": 0.0}
    ran = run_tiny(tmp_path, {"trainer_mode": mode, "training.epochs_per_stack": 1, "rack": SMALL}, before=watch)
    assert [planned.phase.name for planned in ran.plan.phases] == ["stack 0", "stack 1", "finale"]
    assert ended[2] == ended[1]
    assert ended[1] != ended[0]
    rates = {e.planned.phase.name: e.learning_rate for e in ran.events if isinstance(e, StepDone) if e.step == 3}
    assert rates["finale"] == 0
    assert rates["stack 1"] > 0


def test_a_phase_ends_at_a_plateau(tmp_path):
    """After the first best, two validations without a gain on the same masks, and it ends."""
    still = {"training.block_lr": 0.0, "training.embedding_lr": 0.0, "training.patience": 2, "evaluation.every": 4}
    ran = run_tiny(tmp_path, still | {"rack.stacks": 2})
    for phase in ran.result.phases:
        assert (phase.steps, phase.stopped_early) == (12, True)
    lines = [json.loads(line) for line in ran.engine.files.metrics.read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [(line["phase"], line["step"]) for line in validations] == [
        (f"stack {stack}", step) for stack in (0, 1) for step in (4, 8, 12)
    ]
    assert len({line["loss"] for line in validations[:3]}) == 1
    assert [line["stopped_early"] for line in lines if line["kind"] == "phase"] == [True, True]
    steps = sum(line["kind"] == "step" for line in lines)
    assert steps == 24


@pytest.mark.slow
def test_validation_leaves_training_as_it_is(tmp_path):
    """A run that is validated has the losses of one that isn't, and no phase of it stops early without a plateau."""
    silent = run_tiny(tmp_path / "silent", {"training.epochs_per_stack": 1})
    watched = run_tiny(tmp_path / "watched", {"training.epochs_per_stack": 1, "evaluation.every": 3})
    patient = run_tiny(
        tmp_path / "patient", {"training.epochs_per_stack": 1, "evaluation.every": 3, "training.patience": 50}
    )
    assert silent.losses == watched.losses == patient.losses
    assert not any(phase.stopped_early for phase in patient.result.phases)
    assert not any(isinstance(event, Validated) for event in silent.events)
    every = [event.loss for event in watched.events if isinstance(event, Validated)]
    assert len(every) == sum(planned.steps // 3 for planned in watched.plan.phases)
    assert len(set(every)) == len(every)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["end_to_end", "blockwise"])
def test_activation_checkpointing_leaves_every_loss_as_it_is(tmp_path, mode):
    """It computes each stack again on the way back, and to the same bits."""
    passes = []

    def count(ran: Ran) -> None:
        through, passed = ran.engine.forward.through, []
        passes.append(passed)

        def counted(index, hidden, context):
            if torch.is_grad_enabled():
                passed.append(index)
            return through(index, hidden, context)

        ran.engine.forward.through = counted

    changes = {"trainer_mode": {"use": mode}, "training.epochs_per_stack": 1}
    plain = run_tiny(tmp_path / "plain", changes, before=count)
    saving = run_tiny(tmp_path / "saving", changes | {"training.activation_checkpointing": True}, before=count)
    assert saving.losses == plain.losses
    assert (saving.directory / "stacks/002.safetensors").read_bytes() == (
        plain.directory / "stacks/002.safetensors"
    ).read_bytes()
    assert len(passes[1]) == 2 * len(passes[0])


def test_clm_needs_one_boundary_a_sample(tmp_path):
    """Nothing is masked, so that every epoch reads what the first one made."""
    ran = run_tiny(tmp_path, {"objective": "clm", "rack.attention": "causal", "rack.stacks": 2})
    samples = len(ran.setup.corpus.train)
    assert (ran.result.phases[1].boundaries_computed, ran.result.phases[1].boundaries_read) == (samples, 3 * samples)
    assert ran.result.phases[0].last_loss < ran.result.phases[0].first_loss - 0.5


@pytest.mark.slow
def test_a_run_trains_and_says_so(tmp_path):
    """The loss falls well below that of guessing, every stack takes part, and the events come in order."""
    ran = run_tiny(tmp_path, {"training.epochs_per_stack": 12})
    kinds = [type(event) for event in ran.events if isinstance(event, RunStarted | PhaseStarted | PhaseDone | RunDone)]
    assert kinds == [RunStarted, *[PhaseStarted, PhaseDone] * 3, RunDone]
    first, *_, last = ran.result.phases
    assert first.last_loss < 0.75 * first.first_loss
    assert last.last_loss < first.last_loss
    assert [likelihood.depth for likelihood in ran.result.likelihoods] == [1, 2, 3]
    assert ran.result.likelihoods[-1].nats_per_token < 4.0


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_bits(tmp_path):
    """Two runs of one configuration end with equal files; another seed does not."""
    first, again = run_tiny(tmp_path / "1"), run_tiny(tmp_path / "2")
    other = run_tiny(tmp_path / "3", {"run.seed": 4})
    files = ["embedding.safetensors", "stacks/000.safetensors", "stacks/002.safetensors"]
    for name in files:
        assert (first.directory / name).read_bytes() == (again.directory / name).read_bytes()
        assert (first.directory / name).read_bytes() != (other.directory / name).read_bytes()
    assert first.result.likelihoods == again.result.likelihoods


@pytest.mark.slow
def test_losses_are_those_of_a_hand_written_loop(tmp_path):
    """The first phase, written out with plain torch on the same draws, has the same losses."""
    ran = run_tiny(tmp_path, {"rack.stacks": 1, "training.lr_schedule": "constant", "training.warmup": 0.0})
    setup, training = ran.setup, ran.setup.config.training
    fresh = run_tiny(
        tmp_path / "fresh",
        {
            "run.device": "cpu",
            "rack.stacks": 1,
            "training.steps_per_stack": 1,
            "training.block_lr": 0.0,
            "training.embedding_lr": 0.0,
            "training.weight_decay": 0.0,
        },
    )
    ends, stack = fresh.engine.placement.ends(0), fresh.engine.placement.stack(0)
    matrices = [p for p in (*ends.parameters(), *stack.parameters()) if p.ndim == 2]
    vectors = [p for p in stack.parameters() if p.ndim == 1]
    # The embedding has its own rate in the configuration.
    embedding, rest = matrices[0], matrices[1:]
    optimizer = torch.optim.AdamW(
        [
            {"params": [embedding], "lr": training.embedding_lr, "weight_decay": 0.1},
            {"params": rest, "lr": training.block_lr, "weight_decay": 0.1},
            {"params": vectors, "lr": training.block_lr, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    drawer, losses = ran.engine.training_drawer(ran.plan.phases[0]), []
    for epoch in range(3):
        for window in ran.engine.order.epoch(epoch):
            for (samples,) in window.steps:
                draws = drawer.draw(samples, epoch % 2)
                context = ends.context(draws.segments)
                hidden = stack.norm(stack(ends.embed_tokens(draws.inputs), context))
                logits = hidden @ ends.embed_tokens.weight.T
                logits = torch.cat([logits[..., :256], torch.full_like(logits[..., :1], -1e30), logits[..., 257:]], -1)
                truth = torch.from_numpy(setup.corpus.train.rows(samples).tokens.astype("int64"))
                ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
                is_masked = (draws.inputs == 256) & (draws.segments > 0)
                # linear from 0.15 to 0.9: f' / f with f = 0.15 + 0.75 s
                weight = (0.75 / (0.15 + 0.75 * draws.progress)).float()
                loss = (weight[:, None] * ce * is_masked).sum() / (draws.segments > 0).sum()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([embedding, *rest, *vectors], 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    assert len(losses) == len(ran.losses)
    assert ran.losses == pytest.approx(losses, rel=2e-4)


@pytest.mark.slow
def test_gradient_accumulation_is_one_large_batch(tmp_path):
    """Two batches of 4 a step give the losses of one batch of 8, to rounding, also where the last is short."""
    whole = run_tiny(tmp_path / "whole", {"rack.stacks": 1})
    halves = {"rack.stacks": 1, "training.batch_size": 4, "training.gradient_accumulation": 2}
    accumulated = run_tiny(tmp_path / "halves", halves)
    assert len(whole.losses) == len(accumulated.losses)
    assert accumulated.losses == pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.slow
def test_the_run_directory_holds_what_it_should(tmp_path):
    """Configuration, plan, environment, weights and metrics are there, and load."""
    ran = run_tiny(tmp_path)
    names = {str(path.relative_to(ran.directory)) for path in ran.directory.rglob("*") if path.is_file()}
    written = {f"stacks/{index:03d}.safetensors" for index in range(3)} | {"embedding.safetensors"}
    written |= {"config.toml", "plan.json", "environment.json", "progress.json", "finished.json"}
    written |= {"manifest.json", "metrics.jsonl"}
    assert names == written
    manifest = json.loads((ran.directory / "manifest.json").read_text())["files"]
    assert set(manifest) == names - {"manifest.json", "metrics.jsonl"}
    assert load(ran.directory / "config.toml")[0] == ran.setup.config
    assert (ran.directory / "plan.json").read_text() == json.dumps(ran.plan.to_json(), indent=2) + "\n"
    environment = json.loads((ran.directory / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["plugins"]["trainer_mode"]["distribution"] == "stackwise-modes"
    lines = [json.loads(line) for line in (ran.directory / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "step" for line in lines) == sum(planned.steps for planned in ran.plan.phases)
    assert [line["nats_per_token"] for line in lines if line["kind"] == "likelihood"] == [
        likelihood.nats_per_token for likelihood in ran.result.likelihoods
    ]


@pytest.mark.slow
def test_masters_on_disk_are_the_full_precision_weights(tmp_path):
    """The trunk in memory is the masters on disk in bf16, and the last stack is them in full."""
    ran = run_tiny(tmp_path, {"precision": {"active": {"use": "bf16"}}})
    for index in range(3):
        master = load_file(ran.directory / f"stacks/{index:03d}.safetensors")
        held = ran.engine.placement.stack(index).state_dict()
        assert {tensor.dtype for tensor in master.values()} == {torch.float32}
        for name, tensor in master.items():
            assert torch.equal(held[name].cpu(), tensor.to(held[name].dtype))
        assert held["norm.weight"].dtype == (torch.float32 if index == 2 else torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    [
        {"active": {"use": "bf16"}},
        {"active": {"use": "fp32"}, "trunk": {"use": "bf16"}},
        {"active": {"use": "fp16", "cpu_compute": "fp16"}, "trunk": {"use": "fp16"}},
    ],
)
def test_every_precision_trains_close_to_fp32(tmp_path, precision):
    """Half precision changes the losses by rounding, not by kind."""
    changes = {"training.epochs_per_stack": 1}
    exact = run_tiny(tmp_path / "fp32", changes)
    half = run_tiny(tmp_path / "half", changes | {"precision": precision})
    assert half.losses != exact.losses
    assert half.losses == pytest.approx(exact.losses, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["time", "depth", "both"])
def test_masks_over_time_and_depth(tmp_path, over):
    """Over depth the first stack sees 15 % masks and the last 90 %; over both, each its slice; over time, all."""
    ran = run_tiny(tmp_path, {"training.over": over, "training.epochs_per_stack": 1})
    bands = [tuple(round(fraction, 6) for fraction in planned.band) for planned in ran.plan.phases]
    expected = {
        "time": [(0.15, 0.9)] * 3,
        "depth": [(0.15, 0.15), (0.525, 0.525), (0.9, 0.9)],
        "both": [(0.15, 0.4), (0.4, 0.65), (0.65, 0.9)],
    }
    assert bands == expected[over]
    weightings = {planned.phase.weighting for planned in ran.plan.phases}
    assert weightings == ({"mean"} if over == "depth" else {"nelbo"})


@pytest.mark.slow
def test_resampled_masks_are_new_each_epoch(tmp_path):
    """Fixed masks come round again, resampled ones don't."""
    fixed = run_tiny(tmp_path / "fixed", {"training.masks_per_sample": 1, "rack.stacks": 2})
    fresh = run_tiny(tmp_path / "fresh", {"training.masks": "resampled", "rack.stacks": 2})
    samples = len(fixed.setup.corpus.train)
    assert fixed.result.phases[1].boundaries_computed == samples
    assert fresh.result.phases[1].boundaries_computed == 3 * samples


@pytest.mark.slow
def test_a_run_without_validation_text_says_nothing_of_likelihood(tmp_path):
    """With a validation fraction of 0 there is nothing to measure on."""
    assert run_tiny(tmp_path, {"data.validation_fraction": 0.0}).result.likelihoods == ()


def test_losses_that_stay_without_end_stop_the_run(tmp_path):
    """A learning rate that breaks the weights for good ends the run, and the message names phase and step."""
    with pytest.raises(StackwiseError, match=r'phase "stack 0" \(stack 0\), step 12 of 39, batch .*: the loss is nan'):
        run_tiny(tmp_path, {"training.block_lr": 1e30, "training.max_grad_norm": 0.0, "training.warmup": 0.0})


class Backwards(TrainerMode):
    """Trains the top stack with the rest frozen below, then the bottom one through the frozen top."""

    def plan(self, rack, budget):
        every = range(rack.stacks)
        common = {"path": every, "epochs": 1, "masks_per_sample": 2}
        return [
            Phase(name="top", trains={rack.stacks - 1}, embedding=True, head=True, **common),
            Phase(name="bottom", trains={0}, **common),
            Phase(name="top again", trains={rack.stacks - 1}, **common),
        ]


@pytest.mark.slow
def test_any_plan_is_executed(tmp_path):
    """Frozen stacks above pass gradients through, a stack trains again from its masters, and the rest stays put."""

    def backwards(ran: Ran) -> None:
        implementations = evolve(ran.setup.implementations, mode=Backwards(None))
        ran.plan = ran.engine.plan = ran.engine.record._plan = make_plan(
            evolve(ran.setup, implementations=implementations)
        )

    ran = run_tiny(tmp_path, {"precision": {"active": {"use": "bf16"}}}, before=backwards)
    losses = losses_by_phase(ran)
    assert list(losses) == ["top", "bottom", "top again"]
    assert losses["top again"][-1] < losses["top"][0]
    master = load_file(ran.directory / "stacks/002.safetensors")
    held = ran.engine.placement.stack(2).state_dict()
    assert all(torch.equal(held[name].cpu(), tensor) for name, tensor in master.items())
    assert ran.engine.placement.stack(0).state_dict()["norm.weight"].dtype == torch.bfloat16


class JustTheFirst(TrainerMode):
    """Trains a part of the rack, and serves with that part."""

    def routes(self, rack):
        return [Route(path=(0,))]

    def plan(self, rack, budget):
        return [Phase(name="first", path=(0,), trains={0}, embedding=True, head=True, epochs=1)]


def test_a_rack_that_is_trained_in_part_is_evaluated_in_part(tmp_path):
    """The bound is measured along the mode's routes."""

    def just_the_first(ran: Ran) -> None:
        implementations = evolve(ran.setup.implementations, mode=JustTheFirst(None))
        ran.plan = ran.engine.plan = ran.engine.record._plan = make_plan(
            evolve(ran.setup, implementations=implementations)
        )

    ran = run_tiny(tmp_path, before=just_the_first)
    assert [likelihood.depth for likelihood in ran.result.likelihoods] == [1]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "draws_left"), [(1, 1), (20, 0)])
def test_a_run_that_goes_on_reads_what_it_had_cached(tmp_path, step, draws_left):
    """Boundaries of the phase that broke off, and unused ones below, are found again; none is left at the end."""
    changes = {"cache_backend": {"use": "disk", "dtype": "fp32", "shard_entries": 8}}
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    plan = make_plan(setup)

    def interrupt(event):
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 2" and event.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(setup, plan, registry, interrupt).run()
    directory = tmp_path / "runs" / "tiny"
    passes: list[int] = []

    def note(event):
        if isinstance(event, BoundaryProgress):
            passes.append(event.total)

    result = Engine(setup, plan, registry, note, RunDirectory(directory)).run()
    assert result.phases[2].boundaries_computed == draws_left * len(setup.corpus.train)
    assert passes == [1] * draws_left  # one chunk, through one stack
    assert not list(directory.glob("cache/**/*.safetensors"))
    whole = run_tiny(tmp_path / "whole", changes)
    assert [phase.last_loss for phase in result.phases] == [phase.last_loss for phase in whole.result.phases]


@pytest.mark.slow
def test_a_loss_scaler_that_never_fits_stops_the_run(tmp_path):
    """Steps that are left out for ever are no training."""
    precision = {"active": {"use": "fp16", "cpu_compute": "fp16", "initial_scale": 1e38}}
    with pytest.raises(StackwiseError, match=r"the gradient's norm (nan|inf)"):
        run_tiny(tmp_path, {"precision": precision, "training.epochs_per_stack": 6})


def test_determinism_is_the_run_s_own_affair(tmp_path):
    """After a run torch's settings are what they were."""
    torch.use_deterministic_algorithms(False)
    run_tiny(tmp_path, {"training.steps_per_stack": 1})
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.slow
def test_runs_that_share_a_directory_delete_nothing_of_each_other(tmp_path):
    """The first keeps its boundaries; a second one reads them, and leaves them there with their records."""
    shared = {"use": "disk", "dtype": "fp32", "shard_entries": 8, "directory": str(tmp_path / "shared")}
    first = run_tiny(tmp_path / "first", {"cache_backend": shared | {"keep": "rack"}})
    left = {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    (tmp_path / "shared" / "notes.json").write_text("not ours")
    second = run_tiny(tmp_path / "second", {"cache_backend": shared})
    assert [phase.boundaries_computed for phase in second.result.phases] == [0, 0, 0]
    assert {path: path.read_bytes() for path in left} == left
    assert second.losses == first.losses
    alone = run_tiny(tmp_path / "third", {"cache_backend": shared, "run.seed": 4})
    assert all(phase.boundaries_computed for phase in alone.result.phases[1:])
    after = {path for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    assert after == {*left, tmp_path / "shared" / "notes.json"}


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "left"), [(None, 2), (1, 1), (2, 2)])
def test_a_rack_s_boundaries_stay_as_many_as_asked(tmp_path, steps, left):
    """All, or those of the last time steps."""
    cache = {"use": "disk", "keep": "rack"} | ({} if steps is None else {"keep_time_steps": steps})
    ran = run_tiny(tmp_path, {"cache_backend": cache, "training.epochs_per_stack": 1})
    assert len([path for path in (ran.directory / "cache").iterdir() if path.is_dir()]) == left


@pytest.mark.parametrize("directory", ["taken", "taken/below"])
def test_a_directory_of_boundaries_that_can_t_be_one_is_refused_at_once(tmp_path, directory):
    """Before anything trains, by its key."""
    (tmp_path / "taken").write_text("a file")
    cache = {"use": "disk", "directory": str(tmp_path / directory)}
    with pytest.raises(UsageError, match=r"cache_backend.directory = .*taken is a file, expected a directory"):
        run_tiny(tmp_path, {"cache_backend": cache})


@pytest.mark.slow
def test_equal_draws_leave_the_boundary_below_whole(tmp_path):
    """Fully masked rows are one key: what was made of it first doesn't send the others back to the tokens."""
    passes: dict[str, list[int]] = {}

    def watch(ran: Ran) -> None:
        def listen(event):
            if isinstance(event, BoundaryProgress):
                passes.setdefault(event.planned.phase.name, []).append(event.total)

        ran.engine.listener = listen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stackwise_core.engine.phases.setup.CHUNK_TOKENS", dict.fromkeys(("cpu", "cuda"), 8 * 32))
        ran = run_tiny(
            tmp_path,
            {
                "mask_schedule": {"use": "constant", "fraction": 0.97},
                "cache_backend": {"use": "disk", "dtype": "fp32"},
                "training.window": 16,
            },
            before=watch,
        )
    second, third = ran.result.phases[1:]
    assert second.boundaries_repeated > 5
    assert max(passes["stack 2"]) == 2  # two chunks, one stack
    assert third.boundaries_repeated == second.boundaries_repeated


def test_an_edited_local_plugin_reads_no_boundary_of_its_former_self(tmp_path):
    """A file has no version, so its content is in the name."""
    plugin = tmp_path / "louder.py"
    source = """
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_precision.floats import Fp32
from stackwise_precision.options import Fp32Options as Options


class Louder(Fp32):
    def prepare(self, stack, *, trainable):
        if not trainable:
            for parameter in stack.parameters():
                parameter.data.mul_(FACTOR)


@hookimpl
def precision():
    return [Implementation("louder", "Louder weights", "louder:Louder", "louder:Options")]
"""
    (tmp_path / "louder.toml").write_text('[run]\nplugins = ["louder.py"]\n[precision]\ntrunk = "louder"\n')
    versions = []
    for factor in (1.0, 1.5, 1.0):
        plugin.write_text(source.replace("FACTOR", str(factor)))
        config, registry = load(tmp_path / "louder.toml")
        versions.append(software(config, registry, ("precision",)))
    assert versions[0] == versions[2] != versions[1]


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "left"), [({"keep_time_steps": 2}, 2), ({"capacity": 3 * 100 * 32 * 32 * 4}, 3)])
def test_what_is_kept_is_limited_after_an_interruption_too(tmp_path, cache, left):
    """A run that goes on counts the boundaries that it had before: as many stay as asked, in the room that is given."""
    changes = {
        "rack.stacks": 5,
        "training.epochs_per_stack": 1,
        "cache_backend": {"use": "disk", "dtype": "fp32", "shard_entries": 8, "keep": "rack", **cache},
    }
    config, registry = tiny_config(tmp_path, changes)
    setup = set_up(config, registry)
    plan = make_plan(setup)

    def interrupt(event):
        if isinstance(event, StepDone) and event.planned.phase.name == "stack 3" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(setup, plan, registry, interrupt).run()
    directory = tmp_path / "runs" / "tiny"
    Engine(setup, plan, registry, lambda event: None, RunDirectory(directory)).run()
    shards = list(directory.glob("cache/*/*.safetensors"))
    assert len({shard.parent for shard in shards}) <= left
    payload = 100 * 32 * 32 * 4
    assert sum(shard.stat().st_size for shard in shards) <= 1.05 * left * payload
    held = {shard.parent.name for shard in shards}
    phases = {record.phase for record in read_records(directory / "cache") if record.namespace in held}
    assert "stack 4" in phases
    assert "stack 1" not in phases
