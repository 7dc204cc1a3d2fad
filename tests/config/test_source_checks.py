import shutil
from pathlib import Path

import pytest
from attrs import evolve, frozen

from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load, structure
from stackwise_core.config.model import Choice
from stackwise_core.config.source_checks import source_checks

RUN = Path(__file__).parent / "golden/files/a_run"


def config_from(registry, **rack):
    return structure({"rack": {"n_kv_heads": 4} | rack}, registry)


def wrong_keys(registry, **rack):
    with pytest.raises(ConfigError) as caught:
        config_from(registry, init_from=str(RUN), **rack)
    return [problem.key for problem in caught.value.problems]


def test_a_rack_that_fits(registry):
    """The same shape passes, with as many blocks or more, however they are cut into stacks."""
    for stacks, blocks in ((4, 2), (8, 1), (5, 2)):
        config = config_from(registry, init_from=str(RUN), stacks=stacks, blocks_per_stack=blocks)
        assert config.rack.init_from == str(RUN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", 512),
        ("n_heads", 16),
        ("n_kv_heads", 8),
        ("d_ff", 1024),
        ("attention", "causal"),
        ("tie_embeddings", False),
        ("rope_theta", 1e6),
        ("norm_eps", 1e-6),
        ("stacks", 3),
    ],
)
def test_a_rack_that_does_not_fit(registry, key, value):
    """Each part of the shape is compared, and blamed alone."""
    assert wrong_keys(registry, **{key: value}) == [f"rack.{key}"]


def test_what_is_left_out_is_as_the_source_has_it(registry):
    """A rack of which nothing but the source is said has its shape; what has to follow from other keys isn't blamed."""
    config = structure({"rack": {"init_from": str(RUN)}}, registry)
    assert (config.rack.n_kv_heads, config.rack.d_ff, config.rack.rope_theta) == (4, 704, 10_000)
    config_from(registry, init_from=str(RUN), d_ff=704)
    with pytest.raises(ConfigError) as caught:
        structure({"rack": {"d_model": 512, "init_from": str(RUN)}}, registry)
    message = f"rack.d_model: expected 256, as {RUN} has, found 512"
    assert [str(problem) for problem in caught.value.problems] == [message]


def test_the_embedding_alone_has_to_fit_in_its_width_alone(registry):
    """Blocks, heads and whether it is tied are this rack's own affair."""
    config = config_from(registry, init_from=str(RUN), init="embedding", n_heads=4, tie_embeddings=False, stacks=1)
    assert config.rack.d_model == 256
    assert wrong_keys(registry, init="embedding", d_model=128, n_heads=4) == ["rack.d_model"]
    with pytest.raises(ConfigError, match=r"rack\.init: says what is taken of init_from, and there is none"):
        config_from(registry, init="embedding")


def test_clm_is_causal(registry):
    """A rack for causal language modelling doesn't start from a bidirectional one, whatever rack.attention says."""
    with pytest.raises(ConfigError, match=r'rack\.attention: expected "bidirectional", .*, found "causal"'):
        structure({"rack": {"n_kv_heads": 4, "init_from": str(RUN)}, "objective": "clm"}, registry)


@frozen
class Grows:
    target_stacks: int | None = None


def test_a_mode_that_adds_stacks_may_start_with_fewer(registry):
    """Where the mode has a number of stacks to reach, the configured one is no bound."""
    small = config_from(registry, stacks=2)
    small = evolve(small, rack=evolve(small.rack, init_from=str(RUN)))
    assert [each.keys[0] for each in source_checks(small, {}, registry)] == [("rack", "stacks")]
    for target, refused in ((None, 1), (6, 0)):
        mode = Choice("progressive", Grows(target))
        assert len(list(source_checks(evolve(small, trainer_mode=mode), {}, registry))) == refused


def test_the_path_is_relative_to_its_file(tmp_path, monkeypatch):
    """The run is looked for from the folder of the TOML, not the working directory."""
    shutil.copytree(RUN, tmp_path / "runs/first")
    path = tmp_path / "stackwise.toml"
    path.write_text('[rack]\nn_kv_heads = 4\ninit_from = "runs/first"')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load(path, environ={})[0].rack.init_from == str(tmp_path / "runs/first")


def test_a_source_that_is_gone(tmp_path):
    """The configuration of a run that has its weights is read without what it started from."""
    path = tmp_path / "config.toml"
    path.write_text('[rack]\ninit_from = "gone"')
    with pytest.raises(ConfigError, match=r"config\.toml:2:13: rack\.init_from: no such directory"):
        load(path, environ={})
    assert load(path, environ={}, check_source=False)[0].rack.init_from == str(tmp_path / "gone")
