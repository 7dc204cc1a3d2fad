"""(IA)³: learned scales of keys, values and feed-forward activations (Liu et al. 2022, arXiv 2205.05638)."""

from typing import Any

from torch import nn

from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_peft.base import PeftAdapter, projections_of
from stackwise_peft.files import AdapterConfig
from stackwise_peft.library import IA3Config, IA3Layer, PeftConfig
from stackwise_peft.options import Ia3Options
from stackwise_peft.projections import FEED_FORWARD, features


class Ia3(PeftAdapter):
    """A scale for each output feature of attention's projections, and for each input feature of the feed-forward's."""

    layer_type = IA3Layer
    options: Ia3Options

    def size(self, rack: RackSpec, index: int) -> int:
        per_block = sum(
            inputs if projection in FEED_FORWARD else outputs
            for projection, (inputs, outputs) in features(rack).items()
            if projection in self.options.target_modules
        )
        return rack.blocks[index] * per_block

    def config(self, stack: nn.Module, index: int, count: int) -> PeftConfig:
        return _config(list(self.options.target_modules))

    def config_from(self, file: AdapterConfig, stack: nn.Module) -> PeftConfig:
        file.take("peft_type", '"IA3"', lambda value: value == "IA3")
        config = _config(file.projections("target_modules"))
        feed_forward = sorted(config.feedforward_modules or ())
        file.take(
            "feedforward_modules",
            f"{feed_forward}",
            lambda value: isinstance(value, list) and sorted(map(str, value)) == feed_forward,
        )
        file.nothing_else(config.to_dict())
        return config

    def shapes(self, config: IA3Config, stack: nn.Module) -> dict[str, tuple[int, ...]]:
        return {
            f"{path}.ia3_l": (
                (1, base.in_features) if path.rpartition(".")[2] in FEED_FORWARD else (base.out_features, 1)
            )
            for path, base in projections_of(stack, config.target_modules or ())
        }

    def names(self, layer: Any) -> list[str]:
        return list(layer.ia3_l.keys())

    def parameters(self, layer: Any, name: str) -> dict[str, nn.Parameter]:
        return {"ia3_l": layer.ia3_l[name]}

    def fold(self, layer: Any, name: str) -> None:
        layer.get_base_layer().weight.mul_(layer.ia3_l[name])


def _config(projections: list[str]) -> IA3Config:
    return IA3Config(
        target_modules=projections,
        feedforward_modules=[each for each in projections if each in FEED_FORWARD],
    )
