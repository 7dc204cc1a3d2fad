import pytest

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import structure


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"training": {"window": 15}}, "training.window"),
        ({"training": {"head": "trains"}}, "training.head"),
        ({"training": {"over": "depth", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"warmup": 0.75, "decay": 0.5}}, "training.decay"),
        ({"data": {"mask_token": "[MASK]"}}, "data.mask_token"),
    ],
)
def test_keys_that_do_not_fit_together(registry, data, key):
    """Each combination is refused at the key that is the likeliest culprit."""
    with pytest.raises(ConfigError) as caught:
        structure(data, registry)
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    "data",
    [
        {"training": {"window": 16}},
        {"training": {"head": "trains"}, "rack": {"tie_embeddings": False}},
        {"training": {"over": "both", "weighting": "nelbo"}},
        {"training": {"over": "depth"}},
        {"training": {"warmup": 0.75, "decay": 0.25}},
        {"training": {"warmup": 0.75, "decay": 0.5, "lr_schedule": "cosine"}},
        {"data": {"mask_token": "[MASK]", "tokenizer": "tokenizer.json"}},
    ],
)
def test_keys_that_fit(registry, data):
    """The nearest right combination passes."""
    structure(data, registry)
