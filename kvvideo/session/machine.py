"""Memory that this machine has free. Nothing here starts CUDA, so that a process may still fork."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def free_memory() -> int:
    """Return the bytes of host memory that are free, within the limit of this control group."""
    with open("/proc/meminfo") as lines:
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min([kilobytes * 1024, *_container_memory()])


def _container_memory() -> Iterator[int]:
    """Yield the bytes that the limit of this control group leaves, if it has one."""
    group = Path("/sys/fs/cgroup")
    try:
        yield int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return


def free_gpu_memory() -> list[int]:
    """Return the bytes that are free on each NVIDIA GPU that this process may use; none if the driver does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*query, *(["--id=" + visible] if visible else [])], capture_output=True, text=True, timeout=20, check=True
        )
        return [int(line) << 20 for line in done.stdout.split("\n") if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
