"""peft without the noise of its import, which takes bitsandbytes and torchao along where they are installed.

Every other module here takes it from this one.
"""

from stackwise_core.system.quiet_imports import importing_quietly

with importing_quietly():
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
