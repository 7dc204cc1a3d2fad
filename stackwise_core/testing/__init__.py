"""The conformance kit: one file a hook, with a pytest class that a plugin's tests subclass.

.. code-block:: python

    from stackwise_core.testing.mask_schedule import MaskScheduleContract

    class TestSine(MaskScheduleContract):
        @pytest.fixture
        def schedule(self):
            return Sine(SineOptions())

Each subclass inherits the tests and provides the fixtures that its contract names; ``stackwise_core.testing.plugin``
checks what a distribution registers. The kit needs pytest.
"""

import pytest

for _file in (
    "adapter",
    "cache_backend",
    "checkpoint_format",
    "child",
    "command",
    "corpus",
    "fresh",
    "mask_schedule",
    "objective",
    "optimizer",
    "plugin",
    "precision",
    "small",
    "tracker",
    "trainer_mode",
):
    pytest.register_assert_rewrite(f"{__name__}.{_file}")
