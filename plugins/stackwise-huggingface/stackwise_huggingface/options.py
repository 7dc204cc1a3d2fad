"""Options of an export."""

from typing import Any, Literal

from attrs import frozen

from stackwise_core.options import ByteSize, option

Architecture = Literal["eurobert", "llama"]
Number = Literal["fp32", "bf16", "fp16"]


def _more_than_none(instance: Any, attribute: Any, value: int) -> None:
    if value < 1:
        raise ValueError("expected more than 0 bytes")


@frozen
class HuggingFaceOptions:
    architecture: Architecture | None = option(
        None, "The model of transformers to write. Left out: eurobert, or llama for a causal rack."
    )
    dtype: Number = option("fp32", "The number format of the weights.")
    max_shard_size: ByteSize = option(
        lambda: ByteSize.parse("5 GB"), "Largest size of a file with weights.", check=_more_than_none
    )
