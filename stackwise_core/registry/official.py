"""Names of the implementations in our packages, so that an error can name the package to install.

Nothing here is imported.

Aliases follow the names.
"""

_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "mask_schedule": {"stackwise-masking": ("constant", "linear", "exponential", "cosine")},
    "precision": {
        "stackwise-precision": ("fp32", "bf16", "fp16", "fp8", "nvfp4", "nf_fp8", "full", "bfloat16", "half"),
        "stackwise-bitsandbytes": ("nf4", "fp4", "int8", "qlora"),
    },
    "adapter": {"stackwise-peft": ("lora", "dora", "rslora", "pissa", "olora", "ia3")},
    "cache_backend": {"stackwise-cache": ("memory", "disk"), "stackwise-lmdb": ("lmdb",)},
    "trainer_mode": {
        "stackwise-modes": ("blockwise", "layerwise", "end_to_end", "progressive", "fused", "banded"),
    },
    "optimizer": {
        "stackwise-core": ("adamw",),
        "stackwise-bitsandbytes": ("adamw_8bit", "paged_adamw", "paged_adamw_8bit"),
    },
    "tracker": {"stackwise-tensorboard": ("tensorboard",)},
    "objective": {"stackwise-core": ("mask_diffusion", "mlm", "clm")},
    "command": {"stackwise-sampling": ("sample",), "stackwise-report": ("report",)},
    "checkpoint_format": {"stackwise-huggingface": ("huggingface", "hf")},
    "corpus": {"stackwise-text": ("files",)},
}

OFFICIAL = {
    hook: {name: package for package, names in packages.items() for name in names} for hook, packages in _NAMES.items()
}
"""hook -> name -> package."""

MOVED_FROM_RACK = {
    name: ("stackwise-sampling", f"from stackwise_sampling import {function}", f"{function}(rack, ...)")
    for name, function in {"sample": "sample", "text": "text_for", "unmask": "unmask"}.items()
}
"""Methods that a loaded rack had: the package that has each as a function now, its import, and its call."""

FILES_OF_FORMATS = {"huggingface": ("config.json", "adapter_config.json")}
"""Names of files by which a directory in one of our formats is known where its package isn't installed."""
