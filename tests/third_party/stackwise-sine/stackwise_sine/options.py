"""Options of the schedule."""

from attrs import frozen

from stackwise_core.options import between, option


@frozen
class SineOptions:
    min_fraction: float = option(0.15, "Mask fraction at progress 0.", check=between(0, 1))
    max_fraction: float = option(0.90, "Mask fraction at progress 1.", check=between(0, 1))
