"""Check that a device computes in bf16."""

import torch

from stackwise_core.errors import UnavailableError


def require_bf16(device: torch.device, instead: str) -> None:
    """Refuse a device that can't compute in bf16. Any CPU can, and CUDA from compute capability 8.0 (Ampere).

    Args:
        instead: the setting to recommend for it.

    Raises:
        UnavailableError: the device can't; torch would emulate bf16, slowly.
    """
    if device.type != "cuda":
        return
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    if not native:
        major, minor = torch.cuda.get_device_capability(device)
        raise UnavailableError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor} and doesn't compute in bf16; "
            f"expected 8.0 or later. Take {instead}."
        )
