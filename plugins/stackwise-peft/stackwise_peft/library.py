"""peft without the noise of its import; every other module here takes it from this one.

It imports bitsandbytes and torchao, where they are installed. These warn about kernels that they can't load, and
bitsandbytes asks the package ``kernels``, if that is there too, to download one.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _quietly() -> Iterator[None]:
    """Have ``import kernels`` fail, and warnings in the log go unsaid."""
    disabled, there = logging.root.manager.disable, "kernels" in sys.modules
    kernels = sys.modules.get("kernels")
    logging.disable(logging.WARNING)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.disable(disabled)
        if there:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
        else:
            del sys.modules["kernels"]


with _quietly():
    from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

__all__ = [
    "CONFIG_NAME",
    "SAFETENSORS_WEIGHTS_NAME",
    "BaseTunerLayer",
    "IA3Config",
    "IA3Layer",
    "LoraConfig",
    "LoraLayer",
    "PeftConfig",
    "inject_adapter_in_model",
]
