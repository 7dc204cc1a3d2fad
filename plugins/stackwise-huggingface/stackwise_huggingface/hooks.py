"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def checkpoint_format() -> list[Implementation]:
    factory = "stackwise_huggingface.checkpoint_format:HuggingFace"
    options = "stackwise_huggingface.options:HuggingFaceOptions"
    summary = "Models of the Llama family, as transformers has them"
    return [Implementation("huggingface", summary, factory, options, aliases=("hf",))]
