"""bitsandbytes without the noise of its import; every other module here takes it from this one.

The kernel that its import asks for is for repacked weights, of which there are none here (see ``layers.py``).
"""

from stackwise_core.system.quiet_imports import importing_quietly

with importing_quietly():
    import bitsandbytes

__all__ = ["bitsandbytes"]
