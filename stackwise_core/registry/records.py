"""Records of a plugin, and of each implementation that it declares."""

from typing import Literal

from attrs import frozen

from stackwise_core.hookspecs import Implementation

Stage = Literal["block", "import", "hook", "declaration"]


def label(distribution: str, version: str | None) -> str:
    """Return ``"stackwise-cache 0.1.0"``, or ``"my_plugin.py"`` for a local file, which has no version."""
    return f"{distribution} {version}" if version else f"{distribution}.py"


@frozen
class Declared:
    """An implementation together with the plugin that declares it."""

    hook: str
    implementation: Implementation
    plugin: str
    """The entry point's name; a local file's stem."""
    distribution: str
    """A local file's stem counts as its distribution."""
    version: str | None
    """Version of the distribution; None for a local file."""

    @property
    def name(self) -> str:
        """Name that ``use =`` gives."""
        return self.implementation.name

    @property
    def names(self) -> tuple[str, ...]:
        """Names that ``use =`` may give, the name first and then its aliases."""
        return (self.name, *self.implementation.aliases)

    @property
    def title(self) -> str:
        """The name with its aliases, for people: ``"nf4 (qlora)"``."""
        aliases = ", ".join(self.implementation.aliases)
        return f"{self.name} ({aliases})" if aliases else self.name

    @property
    def full_name(self) -> str:
        """Name that ``use =`` gives where another distribution has one of the same name."""
        return f"{self.distribution}:{self.name}"

    @property
    def package(self) -> str:
        """The distribution and its version, for people."""
        return label(self.distribution, self.version)

    @property
    def origin(self) -> str:
        """Hook, name and package, for messages: ``mask_schedule "sine" of stackwise-sine 1.0``."""
        return f'{self.hook} "{self.name}" of {self.package}'


@frozen
class Problem:
    """The reason why a plugin isn't used."""

    stage: Stage
    message: str
    hint: str
    exception: BaseException | None = None
    """Exception that the plugin raised, with its traceback."""

    def __str__(self) -> str:
        failed = "" if self.stage == "block" else f"failed at {self.stage}: "
        return f"{failed}{self.message}. {self.hint}"


@frozen
class Plugin:
    """An entry point or a local file."""

    name: str
    """The entry point's name; a local file's stem."""
    distribution: str
    version: str | None
    """Version of the distribution; None for a local file."""
    source: str
    """The entry point's value, or the file's path."""
    declared: tuple[Declared, ...] = ()
    """Implementations that it declares; of a broken plugin, those that it declared before it broke."""
    problem: Problem | None = None

    @property
    def state(self) -> Literal["declared", "broken", "blocked"]:
        """State of the plugin. Only the implementations of a ``declared`` one can be used."""
        if self.problem is None:
            return "declared"
        return "blocked" if self.problem.stage == "block" else "broken"

    @property
    def local(self) -> bool:
        """Whether it is a file rather than an installed distribution."""
        return self.version is None

    @property
    def package(self) -> str:
        """The distribution and its version, for people."""
        return label(self.distribution, self.version)

    @property
    def complaint(self) -> str:
        """Complaint about a broken or blocked plugin: what is wrong with it, and what to do."""
        verb = "is " if self.state == "blocked" else ""
        return f'the plugin "{self.name}" of {self.package} {verb}{self.problem}'
