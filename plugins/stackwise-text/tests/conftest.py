"""Corpora to read, and what is said of those that can't be."""

import pytest

from stackwise_core.errors import StackwiseError
from stackwise_text.reading import documents


@pytest.fixture
def texts():
    """A function that reads a corpus."""
    return lambda corpus, text_field="text": [
        document.text for document in documents(str(corpus), text_field=text_field)
    ]


@pytest.fixture
def complaint(texts):
    """A function that says what is wrong with a corpus, and with which exit code."""

    def read(corpus, text_field="text"):
        with pytest.raises(StackwiseError) as caught:
            texts(corpus, text_field)
        return caught.value.exit_code, str(caught.value)

    return read
