import importlib.util
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from stackwise_core.config.model import AdapterConfig, PrecisionConfig
from stackwise_core.config.reference import OptionRow, describe
from stackwise_core.options import ByteSize, option
from stackwise_core.registry import Registry

DOCS = Path(__file__).parents[2] / "docs"


@frozen
class Inner:
    depth: int = option(1, "How deep.")


@frozen
class Options:
    needed: str = option(help="Must be there.")
    size: ByteSize | None = option(None, "How much.")
    pair: tuple[float, float] = option((0.5, 1.0), "Two of them.")
    names: tuple[str, ...] = option((), "Any number.")
    long: tuple[str, ...] = option(("a" * 30, "b" * 30), "More than an error would show.")
    word: Literal["a", "b"] | int = option("a", "One of them.")
    on: bool = option(True, "Whether.")
    factors: dict[int, float] = option(dict, "By place.")
    filled: dict[str, float] = option(lambda: {"a": 1.0, "b c": 2.0}, "By name.")
    either: tuple[float, ...] | dict[int, float] = option((), "A list or a table.")
    inner: Inner = option(dict, "")
    anything: Any = option(3, "")


def test_rows():
    """Types and defaults are written as the TOML would have them; a required key has no default."""
    assert describe(Options) == [
        OptionRow("needed", "string", "", "Must be there."),
        OptionRow("size", "size", "left out", "How much."),
        OptionRow("pair", "array of 2 numbers", "[0.5, 1.0]", "Two of them."),
        OptionRow("names", "array of strings", "[]", "Any number."),
        OptionRow("long", "array of strings", f'["{"a" * 30}", "{"b" * 30}"]', "More than an error would show."),
        OptionRow("word", '"a" or "b" or integer', '"a"', "One of them."),
        OptionRow("on", "boolean", "true", "Whether."),
        OptionRow("factors", "table of numbers by whole number", "{}", "By place."),
        OptionRow("filled", "table of numbers", '{ a = 1.0, "b c" = 2.0 }', "By name."),
        OptionRow("either", "array of numbers or table of numbers by whole number", "[]", "A list or a table."),
        OptionRow("inner.depth", "integer", "1", "How deep."),
        OptionRow("anything", "value", "3", ""),
    ]


def test_a_hook_s_row():
    """A key that chooses an implementation says so, with the default's name."""
    active, trunk, stacks = describe(PrecisionConfig)
    assert (active.type, active.default) == ("name of a precision, or a table with use", '"fp32"')
    assert trunk.default == "left out"
    assert (stacks.type, stacks.default) == ("table of precisions by whole number", "{}")
    assert describe(AdapterConfig)[0].type == "name of an adapter, or a table with use"


def test_the_page_is_up_to_date():
    """docs/config.md is what the options say now; ``make docs`` writes it anew."""
    spec = importlib.util.spec_from_file_location("make_config_reference", DOCS / "make_config_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "config.md").read_text(encoding="utf-8")
    assert module.reference(Registry.discover(environ={})) == page
