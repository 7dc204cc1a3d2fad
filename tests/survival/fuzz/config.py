"""A configuration."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from stackwise_core.config.dump import dump
from stackwise_core.config.load import load
from stackwise_core.errors import StackwiseError
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile_toml import TOML, TOML_NAMES, WORDS, toml_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put

OVERRIDES = st.lists(
    st.builds("{}.{}={}".format, TOML_NAMES, TOML_NAMES, st.sampled_from(WORDS)) | st.text(max_size=12), max_size=2
)


def check_config(case: tuple[bytes, list[str]], inside: Path) -> bool:
    """Check that it is a configuration that can be written and read again, or that an error lists what is wrong."""
    content, overrides = case
    path, config = inside / "stackwise.toml", None
    put(path, content)
    with refusing(StackwiseError):
        config, _ = load(path, environ={}, overrides=overrides)
    if config is None:
        return False
    path.write_text(dump(config), encoding="utf-8")
    assert load(path, environ={})[0] == config
    return True


CONFIG = Target(
    "config",
    lambda: st.tuples(toml_files(TOML), st.just([]) | st.just([]) | OVERRIDES),
    check_config,
    share=0.5,
    sound=lambda: (TOML, []),
    may_read_anything=lambda case: True,  # what it extends, or names as its text, may be anywhere
)
