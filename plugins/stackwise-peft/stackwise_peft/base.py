"""Base class of all adapters: it replaces a stack's projections by peft's layers."""

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.adapter import Adapter, SavedAdapter
from stackwise_peft.files import AdapterConfig, read_tensors, write_adapter
from stackwise_peft.library import BaseTunerLayer, PeftConfig, inject_adapter_in_model
from stackwise_peft.whole_model import how_to_load, write_whole


def projections_of(stack: nn.Module, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers of these projections with their names in the stack, with or without adapters."""
    for name, module in stack.named_modules():
        if name.rpartition(".")[2] in names:
            yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


@contextmanager
def asking_for_gradients_as_before(stack: nn.Module) -> Iterator[None]:
    """Undo what peft does to the ``requires_grad`` of parameters that are there already."""
    before = [(parameter, parameter.requires_grad) for parameter in stack.parameters()]
    yield
    for parameter, asks in before:
        parameter.requires_grad_(asks)


class PeftAdapter(Adapter):
    """Adapters of one of peft's types. All that a stack has are active; a new one is frozen until it is to train."""

    compiles = True
    layer_type: type[BaseTunerLayer]
    """The base class of peft's layers of this type."""

    @abstractmethod
    def config(self, stack: nn.Module, index: int, count: int) -> PeftConfig:
        """Return peft's config of a fresh adapter on a stack."""

    @abstractmethod
    def config_from(self, file: AdapterConfig, stack: nn.Module) -> PeftConfig:
        """Return the config in a file, each of its values checked."""

    @abstractmethod
    def shapes(self, config: Any, stack: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return the shapes of an adapter's tensors on a stack, by their names in peft's file."""

    @abstractmethod
    def names(self, layer: Any) -> list[str]:
        """Return the adapters of a layer, first the one that was attached first."""

    @abstractmethod
    def parameters(self, layer: Any, name: str) -> dict[str, nn.Parameter]:
        """Return an adapter's weights on one layer, by what peft's file calls them after the layer's name."""

    @abstractmethod
    def fold(self, layer: Any, name: str) -> None:
        """Change the layer's own weight in fp32 so that it gives the same output without an adapter that it has."""

    def layers(self, stack: nn.Module, name: str | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the layers with adapters, or with one of this name, each with its name in the stack."""
        for path, module in list(stack.named_modules()):
            if isinstance(module, self.layer_type) and (name is None or name in self.names(module)):
                yield path, module

    def clashes_with(self, other: Adapter) -> str:
        if isinstance(other, PeftAdapter) and other.layer_type is not self.layer_type:
            return "ia3 and the adapters of LoRA's kind can't be on the same layers."
        return ""

    def attach(self, stack: nn.Module, name: str, index: int, count: int) -> None:
        self._inject(stack, name, self.config(stack, index, count))

    def _inject(self, stack: nn.Module, name: str, config: PeftConfig) -> None:
        self.refuse(stack, name)
        with asking_for_gradients_as_before(stack), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            inject_adapter_in_model(config, stack, name)
            for _, layer in self.layers(stack):
                if name in self.names(layer):
                    for parameter in self.parameters(layer, name).values():
                        parameter.data = parameter.data.float()  # peft takes the dtype of what is below it
                layer.set_adapter(self.names(layer), inference_mode=True)
        stack.train(stack.training)

    def refuse(self, stack: nn.Module, name: str) -> None:
        """Raise a StackwiseError where an adapter of this name can't be put on a stack."""
        if name in getattr(stack, "peft_config", {}):
            raise StackwiseError(f"the stack has an adapter {name!r} already")
        if any(isinstance(each, BaseTunerLayer) and not isinstance(each, self.layer_type) for each in stack.modules()):
            raise StackwiseError(f"adapter {name!r}: ia3 and the adapters of LoRA's kind can't stand on one stack")

    def trainable(self, stack: nn.Module, names: Collection[str]) -> list[nn.Parameter]:
        for name in names:
            self._known(stack, name)
        chosen = []
        for _, layer in self.layers(stack):
            for name in self.names(layer):
                for parameter in self.parameters(layer, name).values():
                    parameter.requires_grad_(name in names)
                    if name in names:
                        chosen.append(parameter)
        return chosen

    def save(self, stack: nn.Module, name: str, directory: Path) -> None:
        self._known(stack, name)
        write_adapter(directory, *self.portable(stack, name))

    def portable(self, stack: nn.Module, name: str) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return the config and weights of an adapter for the stack's weights as they were before ``attach``."""
        configs: dict[str, PeftConfig] = stack.peft_config  # type: ignore[assignment]
        return configs[name], {
            f"{path}.{key}": parameter
            for path, layer in self.layers(stack, name)
            for key, parameter in self.parameters(layer, name).items()
        }

    def load(self, stack: nn.Module, name: str, directory: Path) -> None:
        config = self.config_from(AdapterConfig(directory), stack)
        tensors = read_tensors(directory, self.shapes(config, stack))
        with torch.random.fork_rng(devices=[]):  # what peft draws for a fresh adapter is written over
            self._inject(stack, name, config)
        with torch.no_grad():
            for path, layer in self.layers(stack, name):
                for key, parameter in self.parameters(layer, name).items():
                    parameter.copy_(tensors[f"{path}.{key}"])

    def merge(self, stack: nn.Module, name: str) -> None:
        self._known(stack, name)
        for path, layer in self.layers(stack, name):
            base = layer.get_base_layer()
            if type(base) is not nn.Linear or base.weight.dtype is not torch.float32:
                held = base.weight.dtype if type(base) is nn.Linear else type(base).__name__
                raise StackwiseError(
                    f"adapter {name!r} can't be merged into {path}, which is {held}: merge into the full-precision "
                    "masters"
                )
        with asking_for_gradients_as_before(stack), torch.no_grad():
            for path, layer in self.layers(stack, name):
                self.fold(layer, name)
                layer.delete_adapter(name)
                if not self.names(layer):
                    stack.set_submodule(path, layer.get_base_layer())
        configs: dict[str, PeftConfig] = stack.peft_config  # type: ignore[assignment]
        del configs[name]
        if not configs:
            del stack.peft_config

    def export(self, stacks: Sequence[SavedAdapter], blocks: int, directory: Path) -> None:
        write_whole(stacks, blocks, directory)

    def loading(self, names: Sequence[str], model: str) -> str:
        return how_to_load(names, model)

    def _known(self, stack: nn.Module, name: str) -> None:
        configs = getattr(stack, "peft_config", {})
        if name not in configs:
            raise StackwiseError(f"the stack has no adapter {name!r}; it has {sorted(configs) or 'none'}")
