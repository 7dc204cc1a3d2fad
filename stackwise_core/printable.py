"""Text that is safe to print on a terminal or a page."""


def printable(text: str, keep: str = "\t") -> str:
    """Return the text without control characters and lone surrogates, which would upset a terminal."""
    return "".join(character if character.isprintable() or character in keep else "\ufffd" for character in text)
