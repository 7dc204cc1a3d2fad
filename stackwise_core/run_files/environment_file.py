"""environment.json: the software and the device that a run began with."""

from __future__ import annotations

from attrs import frozen

from stackwise_core.run_files.records import keyed, omitted


@frozen(kw_only=True)
class PluginRecord:
    """An implementation that a run chose."""

    use: str
    """Its name."""
    distribution: str
    """The package that it is from, or the name of a local file."""
    version: str
    """The package's version, or a local file's SHA-256."""


@frozen(kw_only=True)
class EnvironmentFile:
    """The content of environment.json."""

    core: str = keyed("stackwise-core")
    """Version of the core."""
    plugins: dict[str, PluginRecord]
    """The implementations that the run chose, by dotted key; those that it has now."""
    packages: dict[str, str]
    """Versions of the libraries that these need, by name."""
    python: str
    """Version of Python."""
    torch: str
    """Version of torch."""
    safetensors: str
    """Version of safetensors."""
    platform: str
    """The operating system."""
    device: str
    """The GPU's model, or the kind of processor."""
    threads: int
    """Threads that compute."""
    changed: tuple[str, ...] = omitted(())
    """Changes of plugins that the run resumed with."""
