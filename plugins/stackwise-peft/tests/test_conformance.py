"""Every adapter against the conformance kit, in fp32 and on the precisions that a frozen stack may be in."""

import pytest

from stackwise_bitsandbytes.eight_bit import Int8
from stackwise_bitsandbytes.four_bit import Fp4, Nf4
from stackwise_bitsandbytes.options import EightBitOptions, FourBitOptions
from stackwise_core.testing.adapter import AdapterContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_peft.ia3 import Ia3
from stackwise_peft.lora import Dora, Lora, Olora, Pissa, RsLora
from stackwise_peft.options import Ia3Options, LoraOptions, PissaOptions
from stackwise_precision.floats import Bf16
from stackwise_precision.fp8 import Fp8
from stackwise_precision.nf_fp8 import NfFp8
from stackwise_precision.nvfp4 import Nvfp4
from stackwise_precision.options import Bf16Options, Fp8Options, NfFp8Options, Nvfp4Options


class TestPlugin(PluginContract):
    hooks = "stackwise_peft.hooks"


ADAPTERS = {
    "Lora": Lora(LoraOptions()),
    "Dora": Dora(LoraOptions()),
    "RsLora": RsLora(LoraOptions(alpha=4.0)),
    "Pissa": Pissa(PissaOptions()),
    "FastPissa": Pissa(PissaOptions(svd_iterations=4)),
    "Olora": Olora(LoraOptions()),
    "Ia3": Ia3(Ia3Options()),
}
# Their arithmetic is the same on each projection.
ON_PRECISIONS = {
    "Lora": Lora(LoraOptions(target_modules=("k_proj", "down_proj"))),
    "Dora": Dora(LoraOptions(target_modules=("k_proj", "down_proj"))),
    "RsLora": RsLora(LoraOptions(alpha=4.0, target_modules=("k_proj",))),
    "Pissa": Pissa(PissaOptions(target_modules=("k_proj", "down_proj"))),
    "Olora": Olora(LoraOptions(target_modules=("k_proj", "down_proj"))),
    "Ia3": ADAPTERS["Ia3"],
}
# With the largest difference that rounding makes. In fp32 it would show any mistake of the arithmetic.
PRECISIONS = {
    "Bf16": (Bf16(Bf16Options()), 0.1),
    "Nf4": (Nf4(FourBitOptions(compute="fp32")), 1e-4),
    "Nf4InBf16": (Nf4(FourBitOptions()), 0.05),
    "Fp4": (Fp4(FourBitOptions(compute="fp32")), 1e-4),
    "Int8": (Int8(EightBitOptions(compute="fp32")), 1e-4),
    "Fp8": (Fp8(Fp8Options(compute="fp32")), 1e-4),
    "Nvfp4": (Nvfp4(Nvfp4Options(compute="fp32")), 1e-4),
    "NfFp8": (NfFp8(NfFp8Options(compute="fp32")), 1e-4),
}


def contract(tested, precision=None, tolerance=1e-4):
    class Contract(AdapterContract):
        @pytest.fixture
        def adapter(self):
            return tested

    Contract.precision, Contract.tolerance = precision, tolerance
    if precision is not None:
        # The same in fp32 for all of them.
        Contract.test_merging_keeps_the_output = Contract.test_each_stack_s_part_is_exported = None
    return Contract


for kind, adapter in ADAPTERS.items():
    globals()[f"Test{kind}"] = contract(adapter)
for kind, adapter in ON_PRECISIONS.items():
    for name, (precision, tolerance) in PRECISIONS.items():
        if not (precision.quantises and adapter.float_only):
            made = contract(adapter, precision, tolerance)
            # Of 40 or so LoRA over nf4 is quick enough a look for `make check`.
            globals()[f"Test{kind}On{name}"] = made if (kind, name) == ("Lora", "Nf4") else pytest.mark.slow(made)
