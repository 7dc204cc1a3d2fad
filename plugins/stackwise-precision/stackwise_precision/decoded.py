"""Base of fp8, nvfp4 and nf_fp8: their weights are decoded to the format that the option ``compute`` names."""

import torch

from stackwise_core.engine.rack.quantised_precision import QuantisedPrecision


class DecodedPrecision(QuantisedPrecision):
    """A quantised precision with the option ``compute``."""

    compiles = True
    without_bf16 = 'compute = "fp32"'

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.options.compute == "bf16" else torch.float32
