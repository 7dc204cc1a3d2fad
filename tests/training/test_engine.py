import hashlib
import json

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from stackwise_core.config.load import load
from stackwise_core.data.draws import Stream
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.interfaces.trainer_mode import TrainerMode
from stackwise_core.training.events import PhaseDone, PhaseStarted, RunDone, RunStarted, StepDone
from stackwise_core.training.plan import make_plan
from tests.tiny import Ran, run_tiny


def hashes(ran: Ran) -> dict[str, str]:
    """A hash of every weight that the engine holds or has on disk."""
    residency = ran.engine._residency
    tensors = {f"ends.{name}": tensor for name, tensor in residency.ends(0).state_dict().items()}
    for index in range(ran.setup.spec.stacks):
        if index in residency:
            tensors |= {f"stacks.{index}.{name}": t for name, t in residency.stack(index).state_dict().items()}
    return {name: hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def changed_by_phase(tmp_path, changes) -> tuple[Ran, list[set[str]]]:
    """The names of the tensors that each phase changed, by their hashes before and after it."""
    changed, before = [], {}

    def watch(ran: Ran) -> None:
        residency, listener = ran.engine._residency, ran.engine._listener
        place = residency.place

        def placed(phase):
            place(phase)
            before.clear()
            before.update(hashes(ran))

        def listen(event):
            if isinstance(event, PhaseDone):
                after = hashes(ran)
                assert after.keys() == before.keys()
                changed.append({name for name in after if after[name] != before[name]})
            listener(event)

        residency.place = placed
        ran.engine._listener = listen

    return run_tiny(tmp_path, changes, before=watch), changed


@pytest.mark.parametrize("head", ["frozen", "trains"])
@pytest.mark.parametrize("mode", ["blockwise", "layerwise", "end_to_end"])
def test_just_what_the_plan_says_changes(tmp_path, mode, head):
    """Each phase changes every tensor that it trains, and no other by a bit."""
    ran, changed = changed_by_phase(
        tmp_path,
        {
            "trainer_mode": {"use": mode},
            "rack": {"stacks": 2, "blocks_per_stack": 2, "d_model": 32, "n_heads": 2, "tie_embeddings": False},
            "training.head": head,
            "training.epochs_per_stack": 1,
        },
    )
    assert len(changed) == len(ran.plan.phases)
    for planned, names in zip(ran.plan.phases, changed, strict=True):
        phase = planned.phase
        # Of the exit norms only the last one of the path is read out, and so has a gradient.
        allowed = {
            f"stacks.{index}.{name}"
            for index in phase.trains
            for name in ran.engine._residency.stack(index).state_dict()
            if index == phase.path[-1] or not name.startswith("norm.")
        }
        allowed |= {"ends.embed_tokens.weight"} if phase.embedding else set()
        allowed |= {"ends.lm_head.weight"} if phase.head else set()
        assert names == allowed


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


def test_the_same_configuration_gives_the_same_bits(tmp_path):
    """Two runs of one configuration end with equal files; another seed does not."""
    first, again = run_tiny(tmp_path / "1"), run_tiny(tmp_path / "2")
    other = run_tiny(tmp_path / "3", {"run.seed": 4})
    files = ["embedding.safetensors", "stacks/000.safetensors", "stacks/002.safetensors"]
    for name in files:
        assert (first.directory / name).read_bytes() == (again.directory / name).read_bytes()
        assert (first.directory / name).read_bytes() != (other.directory / name).read_bytes()
    assert first.result.likelihoods == again.result.likelihoods


def test_losses_are_those_of_a_hand_written_loop(tmp_path):
    """The first phase, written out with plain torch on the same draws, has the same losses."""
    ran = run_tiny(tmp_path, {"rack.stacks": 1, "training.lr_schedule": "constant", "training.warmup": 0.0})
    setup, training = ran.setup, ran.setup.config.training
    fresh = run_tiny(
        tmp_path / "fresh",
        {
            "rack.stacks": 1,
            "training.steps_per_stack": 1,
            "training.block_lr": 0.0,
            "training.embedding_lr": 0.0,
            "training.weight_decay": 0.0,
        },
    )
    ends, stack = fresh.engine._residency.ends(0), fresh.engine._residency.stack(0)
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
    drawer, losses = ran.engine._drawer(ran.plan.phases[0], setup.corpus.train, Stream.TRAINING), []
    for epoch in range(3):
        for window in ran.engine._order.epoch(epoch):
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


def test_gradient_accumulation_is_one_large_batch(tmp_path):
    """Two batches of 4 a step give the losses of one batch of 8, to rounding, also where the last is short."""
    whole = run_tiny(tmp_path / "whole", {"rack.stacks": 1})
    halves = {"rack.stacks": 1, "training.batch_size": 4, "training.gradient_accumulation": 2}
    accumulated = run_tiny(tmp_path / "halves", halves)
    assert len(whole.losses) == len(accumulated.losses)
    assert accumulated.losses == pytest.approx(whole.losses, rel=1e-4)


def test_the_run_directory_holds_what_it_should(tmp_path):
    """Configuration, plan, environment, weights and metrics are there, and load."""
    ran = run_tiny(tmp_path)
    names = {str(path.relative_to(ran.directory)) for path in ran.directory.rglob("*") if path.is_file()}
    stacks = {f"stacks/{index:03d}.safetensors" for index in range(3)}
    assert (
        names
        == {"config.toml", "plan.json", "environment.json", "embedding.safetensors", "manifest.json", "metrics.jsonl"}
        | stacks
    )
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


def test_masters_on_disk_are_the_full_precision_weights(tmp_path):
    """The trunk in memory is the masters on disk in bf16, and the last stack is them in full."""
    ran = run_tiny(tmp_path, {"precision": {"active": {"use": "bf16"}}})
    for index in range(3):
        master = load_file(ran.directory / f"stacks/{index:03d}.safetensors")
        held = ran.engine._residency.stack(index).state_dict()
        assert {tensor.dtype for tensor in master.values()} == {torch.float32}
        for name, tensor in master.items():
            assert torch.equal(held[name], tensor.to(held[name].dtype))
        assert held["norm.weight"].dtype == (torch.float32 if index == 2 else torch.bfloat16)


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


def test_resampled_masks_are_new_each_epoch(tmp_path):
    """Fixed masks come round again, resampled ones don't."""
    fixed = run_tiny(tmp_path / "fixed", {"training.masks_per_sample": 1, "rack.stacks": 2})
    fresh = run_tiny(tmp_path / "fresh", {"training.masks": "resampled", "rack.stacks": 2})
    samples = len(fixed.setup.corpus.train)
    assert fixed.result.phases[1].boundaries_computed == samples
    assert fresh.result.phases[1].boundaries_computed == 3 * samples


def test_a_run_without_validation_text_says_nothing_of_likelihood(tmp_path):
    """With a validation fraction of 0 there is nothing to measure on."""
    assert run_tiny(tmp_path, {"data.validation_fraction": 0.0}).result.likelihoods == ()


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(tmp_path):
    """The message names phase and step, and the weights are those of the step before."""
    with pytest.raises(StackwiseError, match=r'phase "stack 0", step \d+ of \d+: the loss is (nan|inf)'):
        run_tiny(tmp_path, {"training.block_lr": 1e30, "training.max_grad_norm": 0.0, "training.warmup": 0.0})


class Backwards(TrainerMode):
    """Trains the top stack with the rest frozen below, then the bottom one through the frozen top."""

    def plan(self, rack, training):
        every = range(rack.stacks)
        common = {"path": every, "epochs": 1, "masks_per_sample": 2}
        return [
            Phase(name="top", trains={rack.stacks - 1}, embedding=True, head=True, **common),
            Phase(name="bottom", trains={0}, **common),
            Phase(name="top again", trains={rack.stacks - 1}, **common),
        ]


def test_any_plan_is_executed(tmp_path):
    """Frozen stacks above pass gradients through, a stack trains again from its masters, and the rest stays put."""

    def backwards(ran: Ran) -> None:
        implementations = evolve(ran.setup.implementations, mode=Backwards(None))
        ran.plan = ran.engine._plan = make_plan(evolve(ran.setup, implementations=implementations))

    ran = run_tiny(tmp_path, {"precision": {"active": {"use": "bf16"}}}, before=backwards)
    losses = {event.planned.phase.name: [] for event in ran.events if isinstance(event, StepDone)}
    for event in ran.events:
        if isinstance(event, StepDone):
            losses[event.planned.phase.name].append(event.loss)
    assert list(losses) == ["top", "bottom", "top again"]
    assert losses["top again"][-1] < losses["top"][0]
    master = load_file(ran.directory / "stacks/002.safetensors")
    held = ran.engine._residency.stack(2).state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in master.items())
    assert ran.engine._residency.stack(0).state_dict()["norm.weight"].dtype == torch.bfloat16


class JustTheFirst(TrainerMode):
    """Trains a part of the rack."""

    def plan(self, rack, training):
        return [Phase(name="first", path=(0,), trains={0}, embedding=True, head=True, epochs=1)]


def test_a_rack_that_is_trained_in_part_is_evaluated_in_part(tmp_path):
    """The bound is measured along the last phase's path."""

    def just_the_first(ran: Ran) -> None:
        implementations = evolve(ran.setup.implementations, mode=JustTheFirst(None))
        ran.plan = ran.engine._plan = make_plan(evolve(ran.setup, implementations=implementations))

    ran = run_tiny(tmp_path, before=just_the_first)
    assert [likelihood.depth for likelihood in ran.result.likelihoods] == [1]


def test_a_run_that_breaks_off_leaves_no_cache(tmp_path):
    """Boundaries that nothing will read again don't stay on the disk."""
    found = []

    def interrupt(ran: Ran) -> None:
        def listen(event):
            if isinstance(event, StepDone) and event.planned.phase.name == "stack 2" and event.step == 20:
                found.extend(ran.engine._directory.path.glob("cache/*/*.safetensors"))
                raise KeyboardInterrupt

        ran.engine._listener = listen

    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path, {"cache_backend": {"use": "disk", "shard_entries": 16}}, before=interrupt)
    assert found
    assert not list(tmp_path.glob("runs/tiny/cache/**/*.safetensors"))


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
