"""A format that is right, and one that needs torch for its description; both without torch themselves."""

import json

from attrs import frozen
from safetensors import safe_open

from stackwise_core.interfaces.checkpoint_format import Checkpoint, CheckpointFormat, Written

FILE = "rack.safetensors"


@frozen
class Options:
    pass


class OneFile(CheckpointFormat):
    """A safetensors file, whose header has the sizes, and a tokenizer.json."""

    def recognises(self, directory):
        return (directory / FILE).is_file()

    def describe(self, directory):
        with safe_open(directory / FILE, framework="np") as file:
            said = json.loads(file.metadata()["rack"])
        return Checkpoint(title="one file", files=(FILE, "tokenizer.json"), tokenizer="tokenizer.json", **said)

    def read(self, directory, checkpoint, name, into):
        with safe_open(directory / FILE, framework="pt") as file:
            into.copy_(file.get_tensor(name))

    def write(self, rack, tensors, tokenizer, directory):
        from stackwise_core.engine.runs.tensor_file import stream_tensors

        said = rack.described | {"special_ids": dict(tokenizer.special_ids)}
        stream_tensors(directory / FILE, rack.shapes, tensors, metadata={"rack": json.dumps(said)})
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer.content))
        return Written(title="one file", numbers="fp32")


class NeedsTorch(OneFile):
    def describe(self, directory):
        import torch

        assert torch
        return super().describe(directory)
