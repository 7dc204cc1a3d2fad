"""fp32, bf16 and fp16: weights as plain floats, computed under torch's autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from stackwise_core.engine.process.bf16_device import require_bf16
from stackwise_core.engine.rack.number_range import NumberRange
from stackwise_core.interfaces.precision import Precision


def _check(stack: nn.Module, dtype: torch.dtype, instead: str) -> None:
    """Refuse weights that become infinite in a number format.

    Raises:
        OutOfRange: with the weight's name.
    """
    numbers = NumberRange.of(dtype, instead)
    for name, weight in stack.state_dict().items():
        numbers.check(weight, name)


class Fp32(Precision):
    """fp32 weights and arithmetic."""

    bytes_per_weight = 4.0
    compiles = True

    def prepare(self, stack: nn.Module, *, trainable: bool) -> None:
        """Leave the fp32 masters as they are."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext()


class Bf16(Precision):
    """bfloat16 matrix products; a stack that trains keeps fp32 masters, a frozen one is held in bf16."""

    bytes_per_weight = 2.0
    compiles = True

    def check(self, device: torch.device) -> None:
        require_bf16(device, "fp16 or fp32")

    def prepare(self, stack: nn.Module, *, trainable: bool) -> None:
        if not trainable:
            _check(stack, torch.bfloat16, "Take fp32.")
            stack.to(torch.bfloat16)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=torch.bfloat16)


class Fp16(Precision):
    """fp16 matrix products under a loss scaler; a frozen stack is held in fp16.

    A CPU computes in bf16 instead, unless ``cpu_compute = "fp16"``: the weights are held in fp16 all the same.
    """

    bytes_per_weight = 2.0
    compiles = True

    def prepare(self, stack: nn.Module, *, trainable: bool) -> None:
        device = next(stack.parameters()).device
        if not trainable or self._compute(device) is torch.float16:
            _check(stack, torch.float16, "Take bf16 or fp32.")
        if not trainable:
            stack.to(torch.float16)

    def _compute(self, device: torch.device) -> torch.dtype:
        in_bf16 = device.type == "cpu" and self.options.cpu_compute == "bf16"
        return torch.bfloat16 if in_bf16 else torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=self._compute(device))

    def loss_scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        if self._compute(device) is not torch.float16:
            return None  # bf16 has fp32's range: nothing underflows
        return torch.amp.GradScaler(device.type, init_scale=self.options.initial_scale)
