import pytest

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import structure


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"training": {"window": 15}}, "training.window"),
        ({"training": {"head": "trains"}}, "training.head"),
        ({"training": {"over": "depth", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"time": "depth", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"time": "depth", "over": "time"}}, "training.over"),
        ({"training": {"time_encoding": "learned", "time_steps": 8}}, "training.time_encoding"),
        ({"training": {"time_encoding": "learned", "time": "input"}}, "training.time_encoding"),
        ({"training": {"time_step_fractions": {"0": 0.15}}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": {"0": 0.15, "2": 0.9}, "time_steps": 2}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": {"-1": 0.15}, "time_steps": 2}}, "training.time_step_fractions"),
        ({"training": {"time_step_fractions": [0.15, 0.9], "time_steps": 3}}, "training.time_step_fractions"),
        ({"training": {"patience": 2}}, "training.patience"),
        ({"evaluation": {"every": 5}, "data": {"validation_fraction": 0}}, "data.validation_fraction"),
        ({"training": {"objective": "mlm", "mlm_random": 0.5, "mlm_keep": 0.75}}, "training.mlm_random"),
        ({"training": {"mlm_random": 0.1}}, "training.mlm_random"),
        ({"training": {"mlm_keep": 0.1}}, "training.mlm_keep"),
        ({"training": {"objective": "mlm", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"objective": "clm", "weighting": "nelbo"}}, "training.weighting"),
        ({"training": {"objective": "clm", "weighting": "mean"}}, "training.weighting"),
        ({"training": {"objective": "clm", "time": "input"}}, "training.time"),
        ({"training": {"objective": "clm", "over": "both"}}, "training.over"),
        ({"training": {"objective": "clm", "time_steps": 8}}, "training.time_steps"),
        ({"training": {"objective": "clm", "time_step_fractions": [0.5]}}, "training.time_step_fractions"),
        ({"training": {"objective": "clm", "masks": "resampled"}}, "training.masks"),
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
        {"training": {"time": "depth", "over": "both", "weighting": "nelbo"}},
        {"training": {"time": "depth"}},
        {"training": {"time_encoding": "learned", "time": "input", "time_steps": 8}},
        {"training": {"time_encoding": "learned", "time": "input", "time_step_fractions": [0.15, 0.9]}},
        {"training": {"time_step_fractions": {"0": 0.15, "1": 0.9}, "time_steps": 2}},
        {"training": {"time_step_fractions": {}}},
        {"training": {"time_step_fractions": [0.15, 0.9], "time_steps": 2}},
        {"training": {"patience": 2}, "evaluation": {"every": 5}},
        {"data": {"validation_fraction": 0}},
        {"training": {"objective": "mlm", "mlm_random": 0.25, "mlm_keep": 0.75, "weighting": "mean"}},
        {"training": {"objective": "clm", "over": "time", "masks": "fixed"}},
        {"training": {"warmup": 0.75, "decay": 0.25}},
        {"training": {"warmup": 0.75, "decay": 0.5, "lr_schedule": "cosine"}},
        {"data": {"mask_token": "[MASK]", "tokenizer": "tokenizer.json"}},
    ],
)
def test_keys_that_fit(registry, data):
    """The nearest right combination passes."""
    structure(data, registry)


@pytest.mark.parametrize(("time", "over"), [("none", '"time" or "both"'), ("depth", '"both"')])
def test_a_way_out_that_is_one(registry, time, over):
    """What a bound over depth is told to set instead isn't refused by another check."""
    with pytest.raises(ConfigError, match=f"or set over = {over}\n"):
        structure({"training": {"time": time, "over": "depth", "weighting": "nelbo"}}, registry)
