"""What changes in a phase is what its plan says: every tensor in memory and on disk, hashed before and after."""

import hashlib
from functools import partial

import pytest
from attrs import define, field
from safetensors.torch import load_file

from stackwise_core.engine.events.events import PhaseDone, PhaseStarted
from stackwise_core.interfaces.phase import Phase
from tests.tiny import Ran, run_tiny

pytestmark = pytest.mark.slow

LORA = {"use": "lora", "rank": 4}
SMALL = {"stacks": 2, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2, "tie_embeddings": False}
SCENARIOS = {
    "progressive, dual, finale": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.4},
        "adapter": {"stack": LORA, "trunk": {**LORA, "rank": 2}},
    },
    "progressive, dual, stackwise finale": {
        "trainer_mode": {"use": "progressive", "trunk": "adapters", "finale": 0.4, "finale_scope": "stackwise"},
        "adapter": {"stack": LORA, "trunk": {**LORA, "target_modules": ["q_proj", "down_proj"]}},
    },
    "progressive, merging": {
        "rack": {**SMALL, "stacks": 3},
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
        "adapter": {"trunk": LORA, "growth": "merge"},
    },
    "prepended, dual": {
        "trainer_mode": {"use": "progressive", "building": "prepend", "trunk": "adapters"},
        "adapter": {"stack": LORA, "trunk": LORA},
    },
    "fused, trainable": {
        "trainer_mode": {"use": "fused", "fusion": "trainable"},
        "adapter": {"stack": LORA, "trunk": LORA},
    },
    "fused, restored": {
        "trainer_mode": {"use": "fused", "fusion": "trainable", "restore": True},
        "adapter": {"stack": LORA},
    },
    "blockwise, birth": {"adapter": {"stack": LORA, "attach": "birth"}, "training.head": "trains"},
    "blockwise, adapters only": {
        "trainer_mode": {"use": "blockwise", "start": "copy"},
        "adapter": {"stack": LORA, "active": "adapters"},
    },
    "blockwise, pissa over floats": {
        "rack": {**SMALL, "stacks": 1},
        "precision": {"trunk": "fp32"},
        "adapter": {"stack": {"use": "pissa", "rank": 4}},
    },
    "end to end, stackwise": {
        "trainer_mode": {"use": "end_to_end", "scope": "stackwise", "cycles": 2},
        "adapter": {"stack": LORA},
        "training.epochs_per_stack": 2,  # else one step is all that an adapter has, in which its A has no gradient
    },
    "end to end, of adapters born with it": {
        "trainer_mode": {"use": "end_to_end"},
        "adapter": {"stack": LORA, "attach": "birth"},
    },
}


def digest(tensor) -> str:
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes()).hexdigest()


def in_memory(ran: Ran) -> dict[str, str]:
    """Hashes of all tensors: ``ends.embed_tokens.weight``, ``0.layers...q_proj.lora_A.stack.weight``."""
    forward = ran.engine.forward
    found = {f"ends.{name}": digest(tensor) for name, tensor in forward.placement.ends(0).state_dict().items()}
    for index in filter(forward.placement.__contains__, range(ran.setup.spec.stacks)):
        state = forward.placement.stack(index).state_dict()
        found |= {f"{index}.{name.replace('.base_layer', '')}": digest(tensor) for name, tensor in state.items()}
    return found


def on_disk(ran: Ran) -> dict[str, str]:
    """Hashes of all tensors by file and name; of quantised stacks and of configs, hashes of the files."""
    directory, found = ran.engine.files, {}
    for name in directory.manifest:
        path = directory.path / name
        if name.startswith("trunk/") or path.name == "adapter_config.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".safetensors":
            found |= {f"{name}: {key}": digest(tensor) for key, tensor in load_file(path).items()}
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def trains_in_memory(phase: Phase, name: str) -> bool:
    """Whether a phase says that it trains a tensor."""
    owner, _, rest = name.partition(".")
    if owner == "ends":
        return phase.embedding if rest.startswith("embed_") else phase.head
    stack, parts = int(owner), rest.split(".")
    if "lora_A" in parts or "lora_B" in parts:
        return (stack, parts[-2]) in phase.adapters
    # Only the last exit of a path is read out, and so only its norm has a gradient.
    return stack in phase.trains and (parts[0] != "norm" or stack == phase.path[-1])


def changes_on_disk(phase: Phase, name: str, before: dict[str, str], stale: set[int]) -> bool:
    """Whether a phase says that a file or a tensor in a file changes.

    Args:
        stale: stacks whose masters changed since they were quantised last.
    """
    file, _, key = name.partition(": ")
    folder, _, rest = file.partition("/")
    if file == "embedding.safetensors":
        return phase.embedding
    if file == "head.safetensors":
        return phase.head
    stack = int(rest[:3])
    if folder == "trunk":
        return stack in stale and stack in phase.path and stack not in phase.trains
    if folder == "adapters":
        adapter = rest.split("/")[1]
        return (stack, adapter) in phase.adapters and (name not in before or not file.endswith(".json"))
    if name not in before:
        return stack in phase.path
    if (stack, "trunk") in phase.merges:
        return "_proj" in key
    return stack in phase.trains and (key != "norm.weight" or stack == phase.path[-1])


def weights(ran: Ran) -> int:
    """How many weights are in memory, at any precision."""
    forward, spec = ran.engine.forward, ran.setup.spec
    held = [ends for _, ends in forward.placement.all_ends()]
    held += [forward.placement.stack(index) for index in range(spec.stacks) if index in forward.placement]
    return sum(
        getattr(parameter, "quant_state", parameter).shape.numel() for each in held for parameter in each.parameters()
    )


@define
class Watched:
    """A phase with what changed in it, and the names of all there was."""

    phase: Phase
    in_memory: set[str]
    all_in_memory: set[str]
    on_disk: set[str]
    on_disk_before: dict[str, str]
    all_on_disk: set[str]
    counted: tuple[int, int]
    """Weights that train, and those that don't."""
    planned: tuple[int, int]


@define
class Watch:
    """Looks at a run from phase to phase."""

    ran: Ran
    phases: list[Watched] = field(factory=list)
    _memory: dict[str, str] = field(factory=dict)
    _memory_after: dict[str, str] = field(factory=dict)
    _disk: dict[str, str] = field(factory=dict)
    _counted: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        engine = self.ran.engine
        engine.placement.place = partial(self.place, engine.placement.place)
        engine.record.write_phase = partial(self.write, engine.record.write_phase)
        engine.listener = partial(self.listen, engine.listener)

    def place(self, place, phase, **options):
        place(phase, **options)
        self._memory = in_memory(self.ran)
        training = sum(parameter.numel() for _, parameter in self.ran.engine.placement.trainable())
        unread = self.ran.setup.spec.d_model * (len(phase.path) - 1)
        self._counted = training, weights(self.ran) - training - unread

    def write(self, write, planned, *others):
        self._memory_after = in_memory(self.ran)
        write(planned, *others)

    def listen(self, listener, event):
        if isinstance(event, PhaseStarted):
            self._disk = on_disk(self.ran)
        elif isinstance(event, PhaseDone):
            disk, planned = on_disk(self.ran), event.planned
            assert self._memory_after.keys() == self._memory.keys()
            self.phases.append(
                Watched(
                    phase=planned.phase,
                    in_memory=changes(self._memory, self._memory_after),
                    all_in_memory=set(self._memory),
                    on_disk=changes(self._disk, disk),
                    on_disk_before=self._disk,
                    all_on_disk=self._disk.keys() | disk.keys(),
                    counted=self._counted,
                    planned=(planned.trainable_parameters, planned.frozen_parameters),
                )
            )
        listener(event)


@pytest.fixture(scope="module", params=SCENARIOS)
def watched(request, tmp_path_factory) -> list[Watched]:
    """The phases of a run over an nf4 trunk, with what changed in each."""
    changed = {"rack": SMALL, "training.epochs_per_stack": 1, "precision": {"trunk": "nf4"}} | SCENARIOS[request.param]
    watches = []

    def watch(ran):
        watches.append(Watch(ran))
        watches[0].begin()

    ran = run_tiny(tmp_path_factory.mktemp("watched"), changed, before=watch)
    assert [each.phase for each in watches[0].phases] == [planned.phase for planned in ran.plan.phases]
    return watches[0].phases


def test_in_memory_just_what_trains_changes(watched):
    """From a phase's first step to its last: every tensor that the plan names, and of no other a bit."""
    for each in watched:
        assert each.in_memory == {name for name in each.all_in_memory if trains_in_memory(each.phase, name)}
        assert each.in_memory < each.all_in_memory or len(each.phase.path) == len(each.phase.trains)


def test_on_disk_just_what_trained_changes(watched):
    """Masters, embedding, head and adapters as the plan says; quantised stacks where their masters are others."""
    stale: set[int] = set()
    for each in watched:
        phase = each.phase
        stale |= {stack for stack, _ in phase.merges}
        stale |= {
            stack for stack in phase.path if f"stacks/{stack:03d}.safetensors: norm.weight" not in each.on_disk_before
        }
        expected = {name for name in each.all_on_disk if changes_on_disk(phase, name, each.on_disk_before, stale)}
        assert each.on_disk == expected
        stale -= set(phase.path) - phase.trains
        stale |= phase.trains


def test_the_plan_has_counted_what_trains_and_what_is_frozen(watched):
    """Weights of adapters among them, and those of quantised stacks as weights, not as bytes."""
    for each in watched:
        assert each.planned == each.counted
