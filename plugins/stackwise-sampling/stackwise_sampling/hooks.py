"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def command() -> list[Implementation]:
    summary = "Write text with a finished run, or fill gaps in one."
    return [Implementation("sample", summary, "stackwise_sampling.command:SampleCommand")]
