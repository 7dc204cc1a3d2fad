"""An adapter has what it is asked for, or says why not."""

import pytest

from stackwise_core.interfaces.adapter import Adapter


class Bare(Adapter):
    """All that is required of every adapter."""

    size = attach = trainable = save = load = lambda *given: None


class Whole(Bare):
    merge = export = lambda *given: None


def test_a_method_that_is_missing_needs_a_reason():
    """The message names both; with the methods or with the reasons it is made."""
    with pytest.raises(TypeError, match=r"Bare has neither merge\(\) nor the reason why not in `unmergeable`"):
        Bare(None)

    class Unmergeable(Bare):
        unmergeable = "it has a nonlinearity"

    with pytest.raises(TypeError, match=r"Unmergeable has neither export\(\) nor the reason why not in `unexportable`"):
        Unmergeable(None)

    class Neither(Unmergeable):
        unexportable = "it is in no other library"

    assert (Neither(None).unmergeable, Whole(None).unmergeable) == ("it has a nonlinearity", "")


def test_a_reason_may_depend_on_options():
    """It is a property then."""

    class Sometimes(Whole):
        merge = Adapter.merge

        @property
        def unmergeable(self):
            return self.options

    assert Sometimes("gated").unmergeable == "gated"
    with pytest.raises(TypeError, match="neither merge"):
        Sometimes("")
