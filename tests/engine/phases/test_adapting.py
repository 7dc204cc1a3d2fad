"""The adapters that train in each phase: the rules of ``[adapter]``, on the plans of the real modes."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from attrs import evolve

from stackwise_core.config.model import AdapterConfig, Choice, TrainingConfig
from stackwise_core.engine.phases.adapting import resolve_adapters
from stackwise_core.engine.phases.plan_checks import check_phases
from stackwise_core.engine.rack.formats import Formats
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.phase import Phase
from stackwise_core.testing.small import small_rack
from stackwise_modes.banded import Banded
from stackwise_modes.blockwise import Blockwise
from stackwise_modes.end_to_end import EndToEnd
from stackwise_modes.fused import Fused
from stackwise_modes.options import (
    BandedOptions,
    BlockwiseOptions,
    EndToEndOptions,
    FusedOptions,
    ProgressiveOptions,
)
from stackwise_modes.progressive import Progressive

FLOAT, QUANTISED = SimpleNamespace(trainable=True, quantises=False), SimpleNamespace(trainable=False, quantises=True)
LORA = SimpleNamespace(rewrites_base=False, float_only="", unmergeable="", clashes_with=lambda other: "")
PISSA = SimpleNamespace(
    rewrites_base=True,
    float_only="it begins with a part of the weights",
    unmergeable="",
    clashes_with=lambda other: "",
)
RACK = small_rack(1, 1, 1)
STACK, TRUNK, BOTH = ("stack",), ("trunk",), ("stack", "trunk")


def settled(
    mode, names=(), *, trunk=QUANTISED, stacks=None, kind=LORA, rack=RACK, training=None, **adapter
) -> list[Phase]:
    """The phases of a mode under an [adapter] table with these adapters."""
    training = training or TrainingConfig(epochs_per_stack=10)
    rack = mode.partition(rack)
    phases = mode.plan(rack, training.budget)
    check_phases(phases, rack, "mode")
    config = AdapterConfig(**{name: Choice("lora", None) for name in names}, **adapter)
    kinds = kind if isinstance(kind, dict) else dict.fromkeys(names, kind)
    formats = Formats(active=FLOAT, trunk=trunk, stacks=stacks or {}, adapters=kinds)
    return resolve_adapters(phases, config, rack, formats)


def who_trains(phases) -> list[tuple[str, list[int], str]]:
    """Each phase's name, the stacks whose weights train, and the adapters that do: ``"0 stack, 0 trunk"``."""
    return [
        (phase.name, sorted(phase.trains), ", ".join(f"{stack} {name}" for stack, name in phase.adapters))
        for phase in phases
    ]


def blockwise(**options):
    return Blockwise(BlockwiseOptions(**options))


def progressive(trunk="adapters", **options):
    return Progressive(ProgressiveOptions(trunk=trunk, **options))


def fused(**options):
    return Fused(FusedOptions(fusion="trainable", **options))


def test_without_adapters_a_plan_stays_as_it_is():
    """Over any trunk, where no mode asks for adapters and no frozen weight is to train again."""
    for mode in (blockwise(), progressive("frozen"), EndToEnd(EndToEndOptions()), fused(restore=True)):
        rack = mode.partition(RACK)
        assert settled(mode) == mode.plan(rack, TrainingConfig(epochs_per_stack=10).budget)


def test_a_stack_adapter_has_a_phase_after_its_stack():
    """Over the frozen weights, with a share of the budget, on the samples and draws that come next."""
    phases = settled(blockwise(), STACK, share=0.3)
    assert who_trains(phases) == [
        ("stack 0", [0], ""),
        ("stack 0, adapter", [], "0 stack"),
        ("stack 1", [1], ""),
        ("stack 1, adapter", [], "1 stack"),
        ("stack 2", [2], ""),
        ("stack 2, adapter", [], "2 stack"),
    ]
    assert [(phase.begins, phase.epochs) for phase in phases] == [(0, 7), (7, 3)] * 3
    main, adapter = phases[2:4]
    assert adapter == evolve(
        main, name="stack 1, adapter", trains=(), adapts={1}, adapters=((1, "stack"),), begins=7, epochs=3
    )
    assert not phases[1].embedding
    assert not phases[1].head


def test_a_stack_adapter_of_birth_trains_with_its_stack():
    """There is no phase of its own."""
    assert who_trains(settled(blockwise(), STACK, attach="birth")) == [
        (f"stack {stack}", [stack], f"{stack} stack") for stack in range(3)
    ]


def test_a_trunk_that_adapts():
    """When a stack joins, the trunk's adapters of all stacks below train with it; then the new stack's own."""
    phases = settled(progressive(), BOTH)
    assert who_trains(phases) == [
        ("stack 0", [0], ""),
        ("stack 0, adapter", [], "0 stack"),
        ("stack 1", [1], "0 trunk"),
        ("stack 1, adapter", [], "1 stack"),
        ("stack 2", [2], "0 trunk, 1 trunk"),
        ("stack 2, adapter", [], "2 stack"),
    ]
    assert [phase.entry for phase in phases[2:]] == [
        "tokens",
        "boundary above stack 0",
        "tokens",
        "boundary above stack 1",
    ]
    assert not any(phase.merges for phase in phases)


def test_the_stacks_own_adapters_go_on_where_the_trunk_has_none():
    """Without adapter.trunk one adapter a stack serves both."""
    assert who_trains(settled(progressive(), STACK)) == [
        ("stack 0", [0], ""),
        ("stack 0, adapter", [], "0 stack"),
        ("stack 1", [1], "0 stack"),
        ("stack 1, adapter", [], "1 stack"),
        ("stack 2", [2], "0 stack, 1 stack"),
        ("stack 2, adapter", [], "2 stack"),
    ]
    assert who_trains(settled(progressive(), STACK, attach="birth")) == [
        ("stack 0", [0], "0 stack"),
        ("stack 1", [1], "0 stack, 1 stack"),
        ("stack 2", [2], "0 stack, 1 stack, 2 stack"),
    ]


def test_the_trunk_s_adapters_alone():
    """Without adapter.stack nothing has a phase of its own."""
    assert who_trains(settled(progressive(), TRUNK)) == [
        ("stack 0", [0], ""),
        ("stack 1", [1], "0 trunk"),
        ("stack 2", [2], "0 trunk, 1 trunk"),
    ]


def test_prepended_stacks_adapt_what_is_above_them():
    """The trunk is above then, and every phase starts at the tokens."""
    phases = settled(progressive(building="prepend"), BOTH)
    assert who_trains(phases) == [
        ("stack 2", [2], ""),
        ("stack 2, adapter", [], "2 stack"),
        ("stack 1", [1], "2 trunk"),
        ("stack 1, adapter", [], "1 stack"),
        ("stack 0", [0], "1 trunk, 2 trunk"),
        ("stack 0, adapter", [], "0 stack"),
    ]
    assert {phase.entry for phase in phases} == {"tokens"}


@pytest.mark.parametrize("building", ["append", "prepend"])
def test_a_finale_trains_all_adapters_that_are_there(building):
    """The stack that joined last has no adapter of the trunk's, and gets none; nothing trains in full."""
    *_, finale = settled(progressive(building=building, finale=0.4, finale_lr=0.5), BOTH)
    last, others = (2, (0, 1)) if building == "append" else (0, (1, 2))
    expected = {(last, "stack"), *((stack, name) for stack in others for name in BOTH)}
    assert (finale.name, finale.trains, finale.embedding, finale.head) == ("finale", set(), False, False)
    assert (set(finale.adapters), finale.adapts, finale.lr) == (expected, {0, 1, 2}, 0.5)
    (_, _, trunk) = who_trains(settled(progressive(building=building, finale=0.4), TRUNK))[-1]
    assert trunk == "0 trunk, 1 trunk, 2 trunk"  # else nothing of the last stack would train


def test_a_stackwise_finale_trains_all_adapters_of_a_stack_at_a_time():
    """In cycles, as a finale of weights does."""
    phases = settled(progressive(finale=0.4, finale_scope="stackwise", cycles=2), BOTH)[-6:]
    adapters = ["0 stack, 0 trunk", "1 stack, 1 trunk", "2 stack"]
    assert who_trains(phases) == [
        (f"finale {cycle}, stack {stack}", [], adapters[stack]) for cycle in (0, 1) for stack in range(3)
    ]


def test_a_finale_of_weights_comes_before_the_stacks_own_adapters():
    """Over a frozen trunk it is the last phase that trains the stacks, and their adapters share its budget."""
    phases = settled(progressive("frozen", finale=0.4), STACK)
    assert who_trains(phases) == [
        ("stack 0", [0], ""),
        ("stack 1", [1], ""),
        ("stack 2", [2], ""),
        ("finale", [0, 1, 2], ""),
        ("finale, adapter", [], "0 stack, 1 stack, 2 stack"),
    ]


def test_a_fused_trunk_that_is_quantised_adapts():
    """Its weights can't train; embedding and head still do, and the new stack in full."""
    phases = settled(fused(), BOTH)
    assert who_trains(phases) == [
        ("stack 0", [0], ""),
        ("stack 0, adapter", [], "0 stack"),
        ("stacks 0-1", [1], "0 trunk"),
        ("stacks 0-1, adapter", [], "1 stack"),
        ("stacks 0-2", [2], "0 trunk, 1 trunk"),
        ("stacks 0-2, adapter", [], "2 stack"),
    ]
    assert [phase.embedding for phase in phases] == [True, False] * 3
    assert who_trains(settled(fused(), STACK, attach="birth"))[1] == ("stacks 0-1", [1], "0 stack, 1 stack")


def test_a_fused_trunk_is_quantised_stack_by_stack():
    """A single stack at a precision that can train goes on training in full."""
    assert who_trains(settled(fused(), TRUNK, stacks={0: FLOAT})) == [
        ("stack 0", [0], ""),
        ("stacks 0-1", [0, 1], ""),
        ("stacks 0-2", [0, 2], "1 trunk"),
    ]


def test_a_fused_trunk_that_is_restored_trains_in_full():
    """With ``restore``, or at a precision that can train, each stack's own adapter waits for the last phase."""
    expected = [
        ("stack 0", [0], ""),
        ("stacks 0-1", [0, 1], ""),
        ("stacks 0-2", [0, 1, 2], ""),
        ("stacks 0-2, adapter", [], "0 stack, 1 stack, 2 stack"),
    ]
    assert who_trains(settled(fused(restore=True), STACK)) == expected
    assert who_trains(settled(fused(), STACK, trunk=FLOAT)) == expected


def test_end_to_end_adapts_at_its_end():
    """Rackwise in one phase after the other; stackwise each stack after its last cycle."""
    assert who_trains(settled(EndToEnd(EndToEndOptions()), STACK)) == [
        ("whole rack", [0, 1, 2], ""),
        ("whole rack, adapter", [], "0 stack, 1 stack, 2 stack"),
    ]
    cycles = settled(EndToEnd(EndToEndOptions("stackwise", 2)), STACK)
    assert who_trains(cycles) == [
        *((f"cycle 0, stack {stack}", [stack], "") for stack in range(3)),
        ("cycle 1, stack 0", [0], ""),
        ("cycle 1, stack 0, adapter", [], "0 stack"),
        ("cycle 1, stack 1", [1], ""),
        ("cycle 1, stack 1, adapter", [], "1 stack"),
        ("cycle 1, stack 2", [2], ""),
        ("cycle 1, stack 2, adapter", [], "2 stack"),
    ]


def test_banded_adapts_each_stack_in_its_band():
    """After its last cycle, on the tokens as ever."""
    phases = settled(Banded(BandedOptions(cycles=2)), STACK)
    assert [phase.name for phase in phases if phase.adapts] == [
        f"cycle 1, stack {stack}, adapter" for stack in range(3)
    ]
    for main, adapter in zip(phases[3::2], phases[4::2], strict=True):
        assert (adapter.path, adapter.progress) == (main.path, main.progress)


MODES = {
    "blockwise": blockwise(),
    "blockwise, uneven": blockwise(shares=(3.0, 2.0, 1.0)),
    "append": progressive(),
    "append, finale": progressive(finale=0.3),
    "append, frozen, finale": progressive("frozen", finale=0.3),
    "prepend": progressive(building="prepend"),
    "fused": fused(),
    "fused, restored": fused(restore=True),
    "end to end": EndToEnd(EndToEndOptions()),
    "end to end, stackwise": EndToEnd(EndToEndOptions("stackwise", 2)),
    "banded": Banded(BandedOptions(cycles=2)),
}


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@pytest.mark.parametrize("attach", ["freeze", "birth"])
@pytest.mark.parametrize("mode", MODES)
def test_budgets_add_up_to_the_mode_s_own(mode, attach, unit):
    """An adapter's phase has its share of the phase before it, and goes on where that ends, in either unit."""
    budgets = {"epochs": TrainingConfig(epochs_per_stack=3), "steps": TrainingConfig(steps_per_stack=17)}
    share = {"share": 0.3} if attach == "freeze" else {}
    planned = MODES[mode].plan(RACK, budgets[unit].budget)
    phases = settled(MODES[mode], STACK, training=budgets[unit], attach=attach, **share)
    for whole in planned:
        parts = [phase for phase in phases if phase.name in (whole.name, f"{whole.name}, adapter")]
        assert len(parts) == 1 or attach == "freeze"
        assert parts[0].begins == whole.begins
        amounts = [phase.epochs if unit == "epochs" else phase.steps for phase in parts]
        assert sum(amounts) == pytest.approx(whole.epochs if unit == "epochs" else whole.steps, abs=1e-12)
        if len(parts) == 2:
            assert parts[1].begins == pytest.approx(whole.begins + amounts[0])
            exact = Fraction(3, 10) * Fraction(sum(amounts))
            assert amounts[1] == pytest.approx(float(exact), abs=0.5 if unit == "steps" else 1e-9)
    assert len(phases) == len(planned) + sum(phase.name.endswith(", adapter") for phase in phases)


def test_an_active_stack_may_be_adapters_only():
    """What joins as a copy has weights, and trains its own adapter over them; the first stack has none."""
    assert who_trains(settled(blockwise(start="copy"), STACK, active="adapters")) == [
        ("stack 0", [0], ""),
        ("stack 0, adapter", [], "0 stack"),
        ("stack 1", [], "1 stack"),
        ("stack 2", [], "2 stack"),
    ]
    phases = settled(progressive(start="copy"), BOTH, active="adapters")
    assert who_trains(phases)[2:] == [("stack 1", [], "0 trunk, 1 stack"), ("stack 2", [], "0 trunk, 1 trunk, 2 stack")]
    assert [phase.epochs for phase in phases] == [8, 2, 10, 10]


def test_given_stacks_may_be_adapters_only():
    """What ``rack.init_from`` brings has weights too."""
    given = evolve(RACK, given=frozenset({0, 1, 2}))
    mode = EndToEnd(EndToEndOptions())
    assert who_trains(settled(mode, STACK, rack=given, active="adapters")) == [
        ("whole rack", [], "0 stack, 1 stack, 2 stack")
    ]
    assert who_trains(settled(mode, STACK, rack=given)) == [
        ("whole rack", [0, 1, 2], ""),
        ("whole rack, adapter", [], "0 stack, 1 stack, 2 stack"),
    ]


def test_what_trained_here_from_random_weights_is_not_adapters_only():
    """A later phase of it is as the mode has it: ``active`` is about stacks that join with weights."""
    phases = settled(progressive("frozen", start="copy", finale=0.4), STACK, active="adapters")
    assert who_trains(phases) == [
        ("stack 0", [0], ""),
        ("stack 1", [], "1 stack"),
        ("stack 2", [], "2 stack"),
        ("finale", [0], "1 stack, 2 stack"),
        ("finale, adapter", [], "0 stack"),
    ]
    assert who_trains(settled(fused(start="copy"), BOTH, active="adapters"))[2:] == [
        ("stacks 0-1", [], "0 trunk, 1 stack"),
        ("stacks 0-2", [], "0 trunk, 1 stack, 2 stack"),
    ]


def test_growth_may_merge_the_trunk_s_adapters():
    """When another stack joins, those that have trained are folded in; what follows without a new stack merges none."""
    phases = settled(progressive(finale=0.2), BOTH, growth="merge")
    assert {phase.name: phase.merges for phase in phases if phase.merges} == {"stack 2": ((0, "trunk"),)}
    four = settled(progressive(), TRUNK, growth="merge", rack=small_rack(1, 1, 1, 1))
    assert [phase.merges for phase in four] == [(), (), ((0, "trunk"),), ((0, "trunk"), (1, "trunk"))]
    assert [phase.merges for phase in settled(fused(), TRUNK, growth="merge")] == [(), (), ((0, "trunk"),)]


def refused(*arguments, **more) -> str:
    with pytest.raises(UsageError) as error:
        settled(*arguments, **more)
    return str(error.value)


def test_a_trunk_that_adapts_needs_an_adapter():
    """The message names the phase and what to write."""
    message = refused(progressive())
    assert 'phase "stack 1" trains adapters, and there are none' in message
    assert 'adapter.trunk = { use = "lora" }' in message


def test_a_quantised_trunk_that_trains_needs_an_adapter():
    """Or its masters back: the message names phase, stack and both ways out."""
    message = refused(fused())
    assert 'phase "stacks 0-1" goes on training stack 0' in message
    assert 'adapter.trunk = { use = "lora" }' in message
    assert "trainer_mode.restore = true" in message


@pytest.mark.parametrize("mode", ["blockwise", "fused, restored", "end to end", "banded", "append, frozen, finale"])
def test_the_trunk_s_adapter_needs_a_phase_that_trains_it(mode):
    """An adapter that would never train isn't accepted in silence."""
    message = refused(MODES[mode], BOTH)
    assert "adapter.trunk: no phase trains the trunk's adapters" in message
    assert 'trainer_mode.trunk = "adapters"' in message


@pytest.mark.parametrize("mode", ["blockwise", "append", "end to end", "banded"])
def test_adapters_only_needs_weights(mode):
    """Random weights are nothing to adapt."""
    message = refused(MODES[mode], STACK, active="adapters")
    assert 'adapter.active = "adapters": every stack that joins begins at random' in message
    assert 'trainer_mode.start = "copy", or have rack.init_from' in message


def test_an_adapter_that_begins_from_finished_weights_has_no_birth():
    """PiSSA and OLoRA take a part of the weights away, which then can't train beside them."""
    message = refused(blockwise(), STACK, trunk=FLOAT, kind=PISSA, attach="birth")
    assert 'adapter.attach = "birth": lora begins from a stack\'s finished weights. Use "freeze".' in message
    assert len(settled(blockwise(), STACK, trunk=FLOAT, kind=PISSA)) == 6


def test_an_adapter_for_floats_stands_on_no_quantised_stack():
    """Whether the trunk is quantised or one stack of it; the message has the adapter's own reason."""
    reason = "frozen: it begins with a part of the weights"
    message = refused(blockwise(), STACK, kind=PISSA)
    assert "can't stand on stack 0, whose weights are quantised" in message
    assert reason in message
    assert "stand on stack 1" in refused(blockwise(), STACK, kind=PISSA, trunk=FLOAT, stacks={1: QUANTISED})
    assert 'adapter.trunk = "lora" can\'t stand' in refused(progressive(), TRUNK, kind=PISSA)


def test_one_step_leaves_an_adapter_none():
    """The message names the phase and the keys that give it one; two steps are one each."""
    message = refused(blockwise(), STACK, training=TrainingConfig(steps_per_stack=1))
    assert 'adapter.share = 0.2 leaves phase "stack 0" itself none of its steps, which are 1' in message
    assert "training.steps_per_stack" in message
    two = settled(blockwise(), STACK, training=TrainingConfig(steps_per_stack=2))
    assert [phase.steps for phase in two] == [1] * 6


@pytest.mark.parametrize("which", BOTH)
def test_adapters_that_can_not_stand_on_one_stack_are_refused(which):
    """Whichever of the two says so; alone each is fine."""
    clashing = SimpleNamespace(rewrites_base=False, float_only="", clashes_with=lambda other: "they are unlike")
    kinds = {**dict.fromkeys(BOTH, LORA), which: clashing}
    message = refused(progressive(), BOTH, kind=kinds)
    assert 'adapter.stack = "lora" and adapter.trunk = "lora" can\'t stand on one stack: they are unlike' in message
    assert settled(progressive(), STACK, kind=clashing)


def test_an_adapter_that_begins_from_the_weights_trains_once():
    """Its file is a larger one without that beginning; merging lets it begin anew."""
    message = refused(progressive(), TRUNK, trunk=FLOAT, kind=PISSA)
    assert 'phase "stack 2" goes on training the trunk adapter of stack 0' in message
    assert 'adapter.growth = "merge"' in message
    assert settled(progressive(), TRUNK, trunk=FLOAT, kind=PISSA, growth="merge")


def test_what_cannot_be_merged_does_not_grow_by_merging():
    """The message has the adapter's reason; where nothing is merged, none is needed."""
    bound = SimpleNamespace(**{**vars(LORA), "unmergeable": "it has a nonlinearity"})
    for names, kind in ((TRUNK, bound), (BOTH, {"stack": LORA, "trunk": bound})):
        with pytest.raises(UsageError, match=r'^adapter\.growth = "merge": .* merged: it has a nonlinearity\. Use'):
            settled(progressive(), names, kind=kind, growth="merge")
    assert settled(progressive(), TRUNK, kind=bound)
    assert settled(progressive(), BOTH, kind={"stack": bound, "trunk": LORA}, growth="merge")
