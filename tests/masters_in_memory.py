"""Masters in memory, of a rack of three small stacks, and a placement over them."""

from pathlib import Path

import torch

from stackwise_core.engine.rack.formats import Formats
from stackwise_core.engine.rack.placement import Placement
from stackwise_core.engine.rack.rack import new_stack
from stackwise_core.engine.rack.stack_loader import StackLoader
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_peft.lora import Lora
from stackwise_peft.options import LoraOptions
from stackwise_precision.floats import Fp32

SPEC = RackSpec(blocks=(1, 1, 1), vocab_size=40, seq_len=12, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48)
MASK = 39
ADAPTERS = {"stack": Lora(LoraOptions(rank=4)), "trunk": Lora(LoraOptions(rank=2, target_modules=("q_proj",)))}


class Shelf(dict):
    """Masters in memory; quantised copies and adapters' files beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: dict[int, tuple[object, dict[str, torch.Tensor]]] = {}
        self.files: dict[tuple[int, str], Path] = {}

    def has_stack(self, index):
        return index in self

    def read_stack(self, index):
        return {name: tensor.clone() for name, tensor in self[index].items()}

    def write_stack(self, index, tensors):
        self[index] = {name: tensor.clone() for name, tensor in tensors.items()}

    def read_ends_of(self, owner):
        return None

    def read_prepared(self, index, precision):
        described, tensors = self.prepared.get(index, (None, {}))
        return dict(tensors) if described == precision else None

    def write_prepared(self, index, precision, tensors):
        self.prepared[index] = (precision, tensors)

    def adapters(self, index):
        return [name for stack, name in self.files if stack == index]

    def adapter(self, index, name):
        return self.files[index, name]

    def checksums(self, index):
        return [*(tensor.sum().item() for tensor in self[index].values()), *map(str, self.files.items())]


def placement(spec: RackSpec = SPEC, masters: Shelf | None = None, seed: int = 0, **formats) -> Placement:
    fp32 = Fp32(None)
    made = Formats(**{"active": fp32, "trunk": fp32, "adapters": ADAPTERS, **formats})
    shelf = Shelf() if masters is None else masters
    return Placement(StackLoader(spec, made, shelf, seed, torch.device("cpu")), mask_id=MASK)


def trained(*stacks: int) -> Shelf:
    """Masters of stacks that are nothing like new ones, norms included."""
    shelf = Shelf()
    for index in stacks:
        state = new_stack(SPEC, index, seed=100).state_dict()
        shelf[index] = {name: torch.rand_like(tensor) + index for name, tensor in state.items()}
    return shelf
