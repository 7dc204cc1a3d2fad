"""What this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def precision() -> list[Implementation]:
    four_bit, eight_bit = "stackwise_bitsandbytes.four_bit", "stackwise_bitsandbytes.eight_bit"
    options = "stackwise_bitsandbytes.options"
    return [
        Implementation(
            "nf4",
            "4-bit NormalFloat of QLoRA, frozen; qlora: nf4, which adapters stand on",
            f"{four_bit}:Nf4",
            f"{options}:FourBitOptions",
            packages=("bitsandbytes",),
            aliases=("qlora",),
        ),
        Implementation(
            "fp4",
            "4-bit floats (sign, two bits of exponent, one of mantissa), frozen",
            f"{four_bit}:Fp4",
            f"{options}:FourBitOptions",
            packages=("bitsandbytes",),
        ),
        Implementation(
            "int8",
            "8-bit integers with a scale a row, frozen",
            f"{eight_bit}:Int8",
            f"{options}:EightBitOptions",
            packages=("bitsandbytes",),
        ),
    ]
