"""What every format comes to: documents with a name and a text."""

from collections.abc import Iterable

from attrs import field, frozen


@frozen
class Document:
    """A text that hangs together: no token of it sees another document's tokens."""

    name: str
    """The file, with the line or row where it holds many, or the topic of the built-in corpus; for messages only."""
    parts: Iterable[str] = field(repr=False)
    """The text, not empty, in order. Parts of a file are read as they are asked for: once,
    and before the next document is."""

    @property
    def text(self) -> str:
        """All of it, in memory."""
        return "".join(self.parts)


@frozen
class TextField:
    """The field or column that holds the text."""

    name: str = "text"
    key: str = "data.text_field"
    """The configuration's key for it, for messages."""
