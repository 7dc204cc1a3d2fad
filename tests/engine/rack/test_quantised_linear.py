"""Formats that the base class of quantised layers refuses. Its results are tested with real formats."""

import pytest
import torch

from stackwise_core.engine.rack.quantised_linear import QuantisedLinear, WeightFormat
from stackwise_core.interfaces.component import ContractError

CPU = torch.device("cpu")


class Signs(WeightFormat):
    """Plus or minus one."""

    def empty(self, out_features, in_features, device):
        return {"codes_sign": torch.empty(out_features, in_features, dtype=torch.uint8, device=device)}

    def encode(self, weight):
        return {"codes_sign": (weight > 0).to(torch.uint8)}

    def decode(self, tensors, in_features, dtype):
        return tensors[0].to(dtype) * 2 - 1


def test_what_a_format_encodes_is_what_the_layer_computes_with():
    """A weight of signs comes back, and the layer multiplies with it."""
    layer = QuantisedLinear(2, 3, Signs(), torch.float32, device=CPU)
    layer.encode(torch.tensor([[1.5, -2.0], [-1.0, -3.0], [0.5, 0.25]]), "weight")
    assert layer.weight.tolist() == [[1, -1], [-1, -1], [1, 1]]
    assert layer(torch.tensor([[2.0, 5.0]])).tolist() == [[-3, -7, 7]]


class Narrow(Signs):
    def empty(self, out_features, in_features, device):
        return {"codes_sign": torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn, device=device)}


def test_floats_that_adapters_would_be_cast_to_are_refused():
    """peft takes the format of what it stands on; the format's author is told."""
    with pytest.raises(ContractError, match=r"Narrow: empty\(\) gave codes_sign as .*float8_e4m3fn; expected"):
        QuantisedLinear(2, 3, Narrow(), torch.float32, device=CPU)


class ARow(Signs):
    """Would be broadcast over all rows."""

    def encode(self, weight):
        return {"codes_sign": super().encode(weight)["codes_sign"][:1]}


class OtherType(Signs):
    def encode(self, weight):
        return {"codes_sign": weight}


class More(Signs):
    def encode(self, weight):
        return {**super().encode(weight), "scale": torch.ones(())}


@pytest.mark.parametrize("wrong", [ARow, OtherType, More])
def test_other_tensors_than_announced_are_refused(wrong):
    """They are neither broadcast, nor cast, nor dropped."""
    layer = QuantisedLinear(2, 3, wrong(), torch.float32, device=CPU)
    with pytest.raises(ContractError, match=r"encode\(\) gave .* for up_proj\.weight; expected .* as empty\(\) gave"):
        layer.encode(torch.ones(3, 2), "up_proj.weight")
