"""Options of the precision."""

from attrs import frozen

from stackwise_core.options import between, option


@frozen
class TernaryOptions:
    threshold: float = option(0.7, "Below it, in mean magnitudes of a row, a weight becomes 0.", check=between(0, 2))
