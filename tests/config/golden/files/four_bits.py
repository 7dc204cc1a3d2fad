"""A local plugin with an option and an alias."""

from attrs import frozen

from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.options import between, option


@frozen
class Options:
    bits: int = option(4, "How many.", check=between(2, 8))


@hookimpl
def precision():
    return [Implementation("four_bits", "Few bits", "four_bits:FourBits", "four_bits:Options", aliases=("quarter",))]
