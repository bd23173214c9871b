"""Triton kernels for what strategies compute on GPUs. Each has a reference in torch, which all else runs.

One idea holds for all of them: a launch costs more than most of this work, so one kernel does what
would be a dozen. Sizes that vary along a stream are not specialised on: each variant would be compiled when it is
first met.
"""

from torch import Tensor


def usable(tensor: Tensor) -> bool:
    """Return True if kernels can work on ``tensor``: it lies on an NVIDIA or AMD GPU."""
    return bool(tensor.is_cuda)
