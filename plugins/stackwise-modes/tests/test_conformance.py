"""The trainer modes against the conformance kit."""

import pytest

from stackwise_core.interfaces.budget import Budget
from stackwise_core.testing.plugin import PluginContract
from stackwise_core.testing.trainer_mode import TrainerModeContract
from stackwise_modes.banded import Banded
from stackwise_modes.blockwise import Blockwise, Layerwise
from stackwise_modes.end_to_end import EndToEnd
from stackwise_modes.fused import Fused
from stackwise_modes.options import (
    BandedOptions,
    BlockwiseOptions,
    EndToEndOptions,
    FusedOptions,
    ProgressiveOptions,
)
from stackwise_modes.progressive import Progressive


class TestPlugin(PluginContract):
    hooks = "stackwise_modes.hooks"


class TestBlockwise(TrainerModeContract):
    @pytest.fixture
    def mode(self):
        return Blockwise(BlockwiseOptions())

    @pytest.fixture(params=["time", "depth", "both"])
    def budget(self, request):
        return Budget(over=request.param)


class TestLayerwise(TrainerModeContract):
    @pytest.fixture
    def mode(self):
        return Layerwise(BlockwiseOptions("copy"))


class TestProgressive(TrainerModeContract):
    @pytest.fixture(
        params=[
            ProgressiveOptions(),
            ProgressiveOptions(building="prepend"),
            ProgressiveOptions(finale=0.3),
            ProgressiveOptions(building="prepend", finale=0.3, finale_scope="stackwise", cycles=2),
            ProgressiveOptions(target_stacks=6),
            ProgressiveOptions(trunk="adapters", finale=0.3),
            ProgressiveOptions(building="prepend", trunk="adapters", finale=0.3, finale_scope="stackwise"),
            ProgressiveOptions(growth="all", trunk="trains", joins="plateau"),
            ProgressiveOptions(growth="double", building="prepend"),
            ProgressiveOptions(growth="double", building="interleave", trunk="trains", target_stacks=6),
        ]
    )
    def mode(self, request):
        return Progressive(request.param)


class TestFused(TrainerModeContract):
    @pytest.fixture(
        params=[
            FusedOptions(),
            FusedOptions("trainable"),
            FusedOptions("trainable", restore=True),
            FusedOptions("hierarchical", joins="plateau"),
        ]
    )
    def mode(self, request):
        return Fused(request.param)


class TestEndToEnd(TrainerModeContract):
    @pytest.fixture(params=["rackwise", "stackwise"])
    def mode(self, request):
        return EndToEnd(EndToEndOptions(request.param))


class TestBanded(TrainerModeContract):
    @pytest.fixture(params=["interleaved", "after_first", "per_stack"])
    def mode(self, request):
        return Banded(BandedOptions(request.param))
