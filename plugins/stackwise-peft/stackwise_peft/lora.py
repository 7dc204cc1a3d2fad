"""LoRA (Hu et al. 2021), its variants DoRA and rsLoRA, and its initialisations PiSSA and OLoRA."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.adapter import Adapter
from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_peft.base import PeftAdapter, projections_of
from stackwise_peft.files import AdapterConfig
from stackwise_peft.library import LoraConfig, LoraLayer, PeftConfig
from stackwise_peft.options import LoraOptions, PissaOptions
from stackwise_peft.projections import features
from stackwise_peft.strategy import alpha_of, rank_of


class Lora(PeftAdapter):
    """W + s B A, with A [rank, inputs] and B [outputs, rank] and s = alpha / rank (arXiv 2106.09685)."""

    layer_type = LoraLayer
    use_dora = False
    use_rslora = False
    options: LoraOptions

    def size(self, rack: RackSpec, index: int) -> int:
        rank = rank_of(self.options, index, rack.stacks)
        per_block = sum(
            prod(shape)
            for projection, (inputs, outputs) in features(rack).items()
            if projection in self.options.target_modules
            for shape in self._shapes(inputs, outputs, min(rank, inputs, outputs)).values()
        )
        return rack.blocks[index] * per_block

    def _shapes(self, inputs: int, outputs: int, rank: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}
        return shapes | {"lora_magnitude_vector": (outputs,)} if self.use_dora else shapes

    def shapes(self, config: LoraConfig, stack: nn.Module) -> dict[str, tuple[int, ...]]:
        return {
            f"{path}.{key}": shape
            for path, base in projections_of(stack, config.target_modules or ())
            for key, shape in self._shapes(
                base.in_features, base.out_features, (config.rank_pattern or {}).get(re.escape(path), config.r)
            ).items()
        }

    def initialisation(self) -> bool | str:
        """Initialisation that peft is asked for. True is LoRA's own: B = 0."""
        return True

    def config(self, stack: nn.Module, index: int, count: int) -> PeftConfig:
        rank = rank_of(self.options, index, count)
        smaller = {
            # peft searches for these as regular expressions, and the first that fits wins: full names can't clash
            re.escape(path): min(base.in_features, base.out_features)
            for path, base in projections_of(stack, self.options.target_modules)
        }
        return LoraConfig(
            r=rank,
            lora_alpha=alpha_of(self.options, index, count),  # type: ignore[arg-type]  # peft only divides it
            lora_dropout=self.options.dropout,
            target_modules=list(self.options.target_modules),
            rank_pattern={path: side for path, side in smaller.items() if side < rank},
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights=self.initialisation(),  # type: ignore[arg-type]  # any number of svd_iterations
        )

    def config_from(self, file: AdapterConfig, stack: nn.Module) -> PeftConfig:
        file.take("peft_type", '"LORA"', lambda value: value == "LORA")
        for key in ("use_dora", "use_rslora"):
            file.take(key, f"{getattr(self, key)} for this adapter".lower(), partial(is_, getattr(self, key)))
        targets = file.projections("target_modules")
        paths = {re.escape(path) for path, _ in projections_of(stack, targets)}
        config = LoraConfig(
            r=file.take("r", "an integer of at least 1", _is_rank),
            lora_alpha=file.number("lora_alpha"),  # type: ignore[arg-type]
            lora_dropout=file.take("lora_dropout", "a number from 0 to below 1", _is_share),
            target_modules=targets,
            rank_pattern=file.take(
                "rank_pattern",
                "ranks by a projection's full name",
                lambda value: isinstance(value, dict) and value.keys() <= paths and all(map(_is_rank, value.values())),
            ),
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )
        file.nothing_else(LoraConfig().to_dict())
        return config

    def _inject(self, stack: nn.Module, name: str, config: PeftConfig) -> None:
        super()._inject(stack, name, config)
        for _, layer in self.layers(stack, name):
            # peft makes an fp32 copy of each input, which autocast undoes at once; only DoRA's norms need it
            layer.cast_input_dtype_enabled = bool(layer.lora_magnitude_vector)

    def clashes_with(self, other: Adapter) -> str:
        if isinstance(other, Lora) and self.use_dora and other.rewrites_base:
            return "dora needs the norms of weights that the other one changes."
        return super().clashes_with(other)

    def refuse(self, stack: nn.Module, name: str) -> None:
        super().refuse(stack, name)
        there: Mapping[str, LoraConfig] = getattr(stack, "peft_config", {})
        if self.rewrites_base and any(config.use_dora for config in there.values()):
            raise StackwiseError(
                f"adapter {name!r}: it would change the weights whose norms a dora on them is made for"
            )
        if self.use_dora and any(isinstance(config.init_lora_weights, str) for config in there.values()):
            raise StackwiseError(f"adapter {name!r}: dora needs the norms of weights that another adapter has changed")

    def names(self, layer: Any) -> list[str]:
        return list(layer.lora_A)

    def parameters(self, layer: Any, name: str) -> dict[str, nn.Parameter]:
        parameters = {"lora_A.weight": layer.lora_A[name].weight, "lora_B.weight": layer.lora_B[name].weight}
        if name in layer.lora_magnitude_vector:
            parameters["lora_magnitude_vector"] = layer.lora_magnitude_vector[name].weight
        return parameters

    def portable(self, stack: nn.Module, name: str) -> tuple[PeftConfig, dict[str, Tensor]]:
        """Return the adapter for the original weights: W' + s B A = W + s (B A - B0 A0), a LoRA of twice the rank.

        W' = W - s B0 A0 are the weights after the initialisation took its part out of them. peft converts in the
        same way, in ``LoraModel.subtract_mutated_init``.
        """
        config, tensors = super().portable(stack, name)
        assert isinstance(config, LoraConfig)
        if config.init_lora_weights is True:
            return config, tensors
        for path, layer in self.layers(stack, name):
            first, last = layer.begun_with[name]
            a, b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
            tensors[a] = torch.cat((tensors[a].detach().cpu(), first), dim=0)
            tensors[b] = torch.cat((tensors[b].detach().cpu(), -last), dim=1)
        return (
            replace(
                config,
                r=2 * config.r,
                lora_alpha=2 * config.lora_alpha,
                rank_pattern={path: 2 * rank for path, rank in (config.rank_pattern or {}).items()},
                init_lora_weights=True,
            ),
            tensors,
        )

    def fold(self, layer: Any, name: str) -> None:
        """Fold an adapter in.

        With c = magnitude / |W + D| a row of DoRA (and 1 of LoRA) and D = s B A, a layer's adapters 1, 2, ... make
        c2 (c1 (W + D1) + D2) and so on of its weight. Without adapter k the same comes of the weight
        ck (W + Dk / (c1 ... ck-1)), of ck B for the adapters before k, and of the others' c as they were.
        """
        weight = layer.get_base_layer().weight
        names = self.names(layer)
        before = names[: names.index(name)]
        scales = {each: self._scale(layer, each) for each in names}
        delta = layer.get_delta_weight(name)
        for each in before:
            delta = delta / scales[each]
            layer.lora_B[each].weight.mul_(scales[name])
        weight.copy_(scales[name] * (weight + delta))
        for each in names:
            if each != name and each in layer.lora_magnitude_vector:
                layer.lora_magnitude_vector[each].weight.copy_(scales[each][:, 0] * self._norms(layer, each))

    def _scale(self, layer: Any, name: str) -> Any:
        """Return the factors that an adapter scales the weight's rows by: [outputs, 1], or 1."""
        if name not in layer.lora_magnitude_vector:
            return 1
        return (layer.lora_magnitude_vector[name].weight / self._norms(layer, name))[:, None]

    def _norms(self, layer: Any, name: str) -> Tensor:
        """|W + D| by row, as peft takes it in a forward pass: [outputs]."""
        weight, delta = layer.get_base_layer().weight, layer.get_delta_weight(name)
        norms: Tensor = layer.lora_magnitude_vector[name].get_weight_norm(weight, delta, scaling=1)
        return norms


class Dora(Lora):
    """magnitude (W + s B A) / |W + s B A|, by row (arXiv 2402.09353)."""

    use_dora = True
    compiles = False  # peft asks a weight for the name of its class's module, which torch can't capture

    def _inject(self, stack: nn.Module, name: str, config: PeftConfig) -> None:
        super()._inject(stack, name, config)
        for _, layer in self.layers(stack, name):
            if hasattr(layer.get_base_layer(), "init_8bit_state"):
                layer.get_base_layer().register_forward_pre_hook(_keep_int8_scales)

    def attach(self, stack: nn.Module, name: str, index: int, count: int) -> None:
        super().attach(stack, name, index, count)
        for _, layer in self.layers(stack, name):
            # peft took the norms in the weights' dtype; in fp32 they are just what a forward pass divides by
            layer.lora_magnitude_vector[name].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[name].weight,
                lora_B=layer.lora_B[name].weight,
                scaling=layer.scaling[name],
            )
            layer.lora_magnitude_vector[name].requires_grad_(False)


def _keep_int8_scales(layer: Any, inputs: Any) -> None:
    """Clear an int8 weight that lost its scales, before the layer uses it. On a CPU peft's DoRA leaves one behind."""
    if getattr(layer.weight, "SCB", None) is None:
        layer.weight.CB = None


class RsLora(Lora):
    """LoRA with s = alpha / sqrt(rank) (arXiv 2312.03732)."""

    use_rslora = True


class _Rewriting(Lora):
    """LoRA that begins with a part of the weights W, which are W - s B0 A0 from then on."""

    float_only = "it begins with a part of the weights, which would have to be quantised again without that part"
    rewrites_base = True

    def attach(self, stack: nn.Module, name: str, index: int, count: int) -> None:
        for path, base in projections_of(stack, self.options.target_modules):
            if type(base) is not nn.Linear:
                raise StackwiseError(
                    f"adapter {name!r} can't stand on {path}, a {type(base).__name__}: {self.float_only}"
                )
        super().attach(stack, name, index, count)
        for _, layer in self.layers(stack, name):
            a, b = (parameter.detach().cpu().clone() for parameter in self.parameters(layer, name).values())
            layer.begun_with = {**getattr(layer, "begun_with", {}), name: (a, b)}


class Pissa(_Rewriting):
    """LoRA that begins as the largest singular values with their vectors (arXiv 2404.02948)."""

    options: PissaOptions

    def initialisation(self) -> str:
        iterations = self.options.svd_iterations
        return "pissa" if iterations is None else f"pissa_niter_{iterations}"


class Olora(_Rewriting):
    """LoRA that begins as the first columns of Q and rows of R of a QR decomposition (arXiv 2406.01775)."""

    def initialisation(self) -> str:
        return "olora"


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
