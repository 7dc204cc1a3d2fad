"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def command() -> list[Implementation]:
    summary = "Write a page that shows a run, or several side by side."
    packages = ("jinja2", "matplotlib", "pygments")
    return [Implementation("report", summary, "stackwise_report.command:ReportCommand", packages=packages)]
