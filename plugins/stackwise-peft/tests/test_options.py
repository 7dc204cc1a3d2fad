"""Options that are refused, and what is imported to read them."""

import pytest

from stackwise_core.config.convert import convert, faults
from stackwise_core.registry import Registry
from stackwise_core.testing.fresh import heavy_imports
from stackwise_peft.options import Ia3Options, LoraOptions, PissaOptions


def test_reading_options_is_light():
    """Neither the hooks nor the options import torch or peft."""
    code = "import stackwise_peft.hooks, stackwise_peft.options, stackwise_peft.strategy"
    assert heavy_imports(code, ("torch", "numpy", "peft", "transformers", "bitsandbytes")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "at least 1"),
        ({"alpha": 0.0}, "more than 0"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"target_modules": ()}, "a projection at least"),
        ({"strategy": "progressive"}, '"progressive" needs rank_pattern or alpha_pattern'),
        ({"strategy": "variable"}, '"variable" needs ranks'),
        ({"rank_pattern": "increasing"}, 'strategy = "progressive"'),
        ({"alpha_pattern": "decreasing"}, 'strategy = "progressive"'),
        ({"pattern_growth": "doubling"}, 'strategy = "progressive"'),
        ({"span": 2.0}, 'strategy = "progressive"'),
        ({"ranks": (1, 2)}, 'strategy = "variable"'),
        ({"strategy": "progressive", "rank_pattern": "increasing", "ranks": (1,)}, 'strategy = "variable"'),
        ({"strategy": "progressive", "rank_pattern": "increasing", "span": 1.0}, "more than 1"),
        (
            {"strategy": "progressive", "rank_pattern": "increasing", "pattern_growth": "doubling", "span": 2.0},
            'pattern_growth = "interpolated"',
        ),
        ({"strategy": "variable", "ranks": (4, 0)}, "at least 1"),
        ({"strategy": "variable", "ranks": ()}, "at least 1"),
        ({"strategy": "variable", "ranks": {-1: 4}}, "from 0"),
    ],
)
def test_refused(options, message):
    """A value out of bounds is refused, and so is a key that would do nothing."""
    with pytest.raises(ValueError, match=message):
        LoraOptions(**options)


def test_refused_by_the_others():
    """A randomised SVD needs a subspace iteration, and (IA)³ a projection."""
    with pytest.raises(ValueError, match="at least 1"):
        PissaOptions(svd_iterations=0)
    with pytest.raises(ValueError, match="a projection at least"):
        Ia3Options(target_modules=())


def test_a_misspelt_projection():
    """The configuration names the nearest projection, at the element that is wrong."""
    config = {"adapter": {"stack": {"use": "lora", "target_modules": ["q_proj", "k_porj"]}}}
    with pytest.raises(Exception) as refused:
        convert(config, Registry.discover())
    ((path, fault),) = faults(refused.value)
    assert path == ("adapter", "stack", "target_modules", 1)
    assert fault.help == 'did you mean "k_proj"?'


def test_ranks_by_stack_from_toml():
    """A table's keys are stacks, an array's elements are in order."""
    for given, expected in (({"0": 4, "2": 8}, {0: 4, 2: 8}), ([4, 8], (4, 8))):
        config = {"adapter": {"stack": {"use": "lora", "strategy": "variable", "ranks": given}}}
        assert convert(config, Registry.discover()).adapter.stack.options.ranks == expected
