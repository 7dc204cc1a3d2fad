"""x + up(gelu(down(x))) after each block (Houlsby et al. 2019, arXiv 1902.00751), in files of its own."""

from safetensors.torch import load_file, save_file
from torch import nn

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.adapter import Adapter

FILE = "bottleneck.safetensors"


class Layers(nn.Module):
    def __init__(self, features, width, device):
        super().__init__()
        self.down = nn.Linear(features, width, bias=False, device=device)
        self.up = nn.Linear(width, features, bias=False, device=device)
        nn.init.zeros_(self.up.weight)
        self.requires_grad_(False)

    def forward(self, x):
        return x + self.up(nn.functional.gelu(self.down(x))).to(x.dtype)


class Bottleneck(Adapter):
    unmergeable = "it has a nonlinearity, and no matrix is the same"
    unexportable = "no other library has it after a block of this kind"

    def size(self, rack, index):
        return rack.blocks[index] * 2 * rack.d_model * self.options.width

    def attach(self, stack, name, index, count):
        norm = stack.norm.weight
        for block in stack.layers:
            layers = Layers(len(norm), self.options.width, norm.device)
            block.add_module(f"bottleneck_{name}", layers)
            block.register_forward_hook(lambda block, inputs, output, layers=layers: layers(output))

    def trainable(self, stack, names):
        for block in stack.layers:
            for name, layers in block.named_children():
                if name.startswith("bottleneck_"):
                    layers.requires_grad_(name.removeprefix("bottleneck_") in names)
        return [each for name in names for layers in self.of(stack, name) for each in layers.parameters()]

    def of(self, stack, name):
        return [block.get_submodule(f"bottleneck_{name}") for block in stack.layers]

    def save(self, stack, name, directory):
        layers = nn.ModuleList(self.of(stack, name))
        save_file({name: tensor.contiguous() for name, tensor in layers.state_dict().items()}, directory / FILE)

    def load(self, stack, name, directory):
        self.attach(stack, name, 0, 1)
        try:
            nn.ModuleList(self.of(stack, name)).load_state_dict(load_file(directory / FILE))
        except (OSError, ValueError, RuntimeError) as error:
            raise StackwiseError(f"{directory / FILE} doesn't fit the stack: {error}") from None
