"""The two files of an adapter."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from torch import nn

from stackwise_core.engine.rack.rack import new_stack
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_peft.lora import Lora
from stackwise_peft.options import LoraOptions
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import json_files, tensor_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import SPEC, put


@cache
def whole_adapter() -> tuple[bytes, bytes]:
    spec = RackSpec(blocks=(1,), seq_len=8, vocab_size=16, **SPEC)
    with tempfile.TemporaryDirectory() as folder:
        adapter, stack = Lora(LoraOptions(rank=2)), new_stack(spec, 0, 0)
        adapter.attach(stack, "stack", 0, 1)
        adapter.save(stack, "stack", Path(folder))
        names = ("adapter_config.json", "adapter_model.safetensors")
        config, weights = ((Path(folder) / name).read_bytes() for name in names)
        return config, weights


def adapters() -> st.SearchStrategy[tuple[bytes, bytes]]:
    config, weights = whole_adapter()
    return st.tuples(json_files(json.loads(config)), st.just(weights)) | st.tuples(
        st.just(config), tensor_files(weights)
    )


def check_adapter(case: tuple[bytes, bytes], inside: Path) -> bool:
    """Check that an adapter stands on its stack and can be run, or that the file is named."""
    config, weights = case
    put(inside / "adapter_config.json", config)
    put(inside / "adapter_model.safetensors", weights)
    spec = RackSpec(blocks=(1,), seq_len=8, vocab_size=16, **SPEC)
    stack: nn.Module = new_stack(spec, 0, 0)
    with refusing(StackwiseError):
        adapter = Lora(LoraOptions(rank=2))
        adapter.load(stack, "stack", inside)
        assert sum(parameter.numel() for parameter in adapter.trainable(stack, ["stack"])) < len(weights)
        return True
    return False


ADAPTER = Target("adapter", adapters, check_adapter, share=0.25, sound=whole_adapter)
