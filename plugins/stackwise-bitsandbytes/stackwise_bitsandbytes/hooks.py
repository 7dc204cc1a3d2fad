"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def precision() -> list[Implementation]:
    four_bit, eight_bit = "stackwise_bitsandbytes.four_bit", "stackwise_bitsandbytes.eight_bit"
    options = "stackwise_bitsandbytes.options"
    return [
        Implementation(
            "nf4",
            "4-bit NormalFloat, 0.52 bytes a weight, for frozen stacks; qlora asks for adapters on it",
            f"{four_bit}:Nf4",
            f"{options}:FourBitOptions",
            packages=("bitsandbytes",),
            aliases=("qlora",),
        ),
        Implementation(
            "fp4",
            "4-bit floats, 0.52 bytes a weight, for frozen stacks",
            f"{four_bit}:Fp4",
            f"{options}:FourBitOptions",
            packages=("bitsandbytes",),
        ),
        Implementation(
            "int8",
            "8-bit integers with a scale a row, 1.01 bytes a weight, for frozen stacks",
            f"{eight_bit}:Int8",
            f"{options}:EightBitOptions",
            packages=("bitsandbytes",),
        ),
    ]


@hookimpl
def optimizer() -> list[Implementation]:
    adamw, options = "stackwise_bitsandbytes.adamw", "stackwise_core.builtin.options:AdamWOptions"
    return [
        Implementation(
            name,
            summary,
            f"{adamw}:{factory}",
            options,
            devices=devices,
            packages=("bitsandbytes",),
        )
        for name, summary, factory, devices in (
            ("adamw_8bit", "AdamW with moments in 8 bits, 2 bytes a weight", "AdamW8bit", ("cpu", "cuda")),
            ("paged_adamw", "AdamW whose moments move to main memory when a GPU is full", "PagedAdamW", ("cuda",)),
            ("paged_adamw_8bit", "adamw_8bit, paged likewise", "PagedAdamW8bit", ("cuda",)),
        )
    ]
