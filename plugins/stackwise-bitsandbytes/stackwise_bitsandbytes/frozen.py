"""Base class of the precisions that quantise with bitsandbytes."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stackwise_core.engine.rack.number_range import NumberRange
from stackwise_core.errors import StackwiseError, UnavailableError
from stackwise_core.interfaces.precision import Precision

COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class FrozenPrecision(Precision):
    """Precision that quantises each linear layer of a stack, for good; norms stay in fp32."""

    trainable = False
    quantises = True
    compiles = True
    name: str
    """Name in the TOML."""
    marks_stack_as: str
    """The attribute, set on the stack as transformers sets it on its models, by which peft knows these layers."""

    @property
    def compute(self) -> torch.dtype:
        """Number format of matrix products."""
        return COMPUTE[self.options.compute]

    @property
    @abstractmethod
    def largest_weight(self) -> float:
        """The largest weight that can be quantised without overflow."""

    def fault(self, linear: nn.Linear) -> str:
        """Return why a layer of this shape can't be held; empty where it can."""
        return ""

    @abstractmethod
    def quantised(self, linear: nn.Linear) -> nn.Linear:
        """Return a quantised layer of the same weights, on their device."""

    @abstractmethod
    def read(self, linear: nn.Linear, tensors: dict[str, Tensor]) -> nn.Linear:
        """Return a layer read from its own tensors, on the device of a layer of its shape."""

    @property
    @abstractmethod
    def tells(self) -> str:
        """Name of a tensor that a layer of this precision has in a file, and a layer of no other has."""

    def check(self, device: torch.device) -> None:
        if device.type == "cpu":
            if self.compute is torch.float16:
                raise UnavailableError(
                    f'{self.name} with compute = "fp16" needs a GPU: a CPU is some 30 times slower in fp16 than in '
                    'bf16. Here compute = "bf16" or "fp32" will do.'
                )
            return
        capability = torch.cuda.get_device_capability(device)
        gpu = f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        if capability < (6, 0):
            raise UnavailableError(
                f"{self.name} needs a GPU of compute capability 6.0 (Pascal) or later for bitsandbytes; {gpu}. "
                'Use "fp16" or "fp32", or run on the CPU.'
            )
        if self.compute is torch.bfloat16 and capability < (8, 0):
            raise UnavailableError(
                f'{self.name} with compute = "bf16" needs a GPU of compute capability 8.0 (Ampere) or later; {gpu}. '
                'Set compute = "fp16" or "fp32".'
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.compute is torch.float32 else torch.autocast(device.type, dtype=self.compute)

    def loss_scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        return torch.amp.GradScaler(device.type) if self.compute is torch.float16 else None

    def prepare(self, stack: nn.Module, *, trainable: bool) -> None:
        if trainable:
            raise StackwiseError(
                f"{self.name} is for frozen stacks: full weights can't train in it. Train them in bf16 "
                "(precision.active), or train adapters on a frozen stack."
            )
        numbers = NumberRange(self.name, self.largest_weight, "Take bf16 or fp32.")
        for name, linear in _linears(stack):
            if fault := self.fault(linear):
                raise StackwiseError(f"{self.name} can't hold {name}.weight: {fault}.")
            numbers.check(linear.weight, f"{name}.weight")
            stack.set_submodule(name, self.quantised(linear))
        self._mark(stack)

    def from_tensors(self, stack: nn.Module, tensors: dict[str, Tensor]) -> None:
        rest = dict(tensors)
        read = set()
        for name, linear in _linears(stack):
            own = {key.removeprefix(f"{name}."): rest.pop(key) for key in tensors if key.startswith(f"{name}.")}
            if not own.keys() >= {"weight", self.tells}:
                raise StackwiseError(f"{name} isn't at {self.name} in these tensors: there is no {name}.{self.tells}.")
            stack.set_submodule(name, self.read(linear, own))
            read.add(f"{name}.weight")
        found = stack.load_state_dict(rest, strict=False)
        if wrong := sorted({*found.missing_keys, *found.unexpected_keys} - read):
            raise StackwiseError(f"These are not the tensors of this stack: {', '.join(wrong)} missing or unknown.")
        self._mark(stack)

    def _mark(self, stack: nn.Module) -> None:
        stack.requires_grad_(False)
        setattr(stack, self.marks_stack_as, True)


def _linears(stack: nn.Module) -> list[tuple[str, nn.Linear]]:
    """List every linear layer of a stack's blocks, by name."""
    found = [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.Linear)]
    assert all(linear.bias is None for _, linear in found), "a block's layers have no biases"
    return found
