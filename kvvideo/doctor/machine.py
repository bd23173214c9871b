"""Check Python, memory, the GPU and torch."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kvvideo._version import __version__
from kvvideo.doctor.finding import Finding, broken, ok, warning
from kvvideo.errors import first_line
from kvvideo.plugin.compat import installed_version
from kvvideo.session.machine import free_memory
from kvvideo.sizes import format_size

PYTHONS = ((3, 11), (3, 12))
"""Versions that kvvideo and vLLM run on."""

LITTLE_MEMORY = 4 << 30
"""Bytes of memory below which little but the bundled model fits."""


def python() -> Iterator[Finding]:
    """Check the version of Python; say where it and kvvideo are."""
    says = f"kvvideo {__version__}, Python {platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] in PYTHONS:
        yield ok("python", says)
    else:
        allowed = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        yield broken("python", says, f"make a new virtual environment with Python {allowed} and install kvvideo there")


def memory() -> Iterator[Finding]:
    """Check how much memory is free, within this container's limit if it has one."""
    free = free_memory()
    says = f"{format_size(free)} of memory free, {len(os.sched_getaffinity(0))} processor cores"
    if free < LITTLE_MEMORY:
        yield warning("memory", says, "end other programs, or use a smaller model and a lower --max-tokens")
    else:
        yield ok("memory", says)


def torch() -> Iterator[Finding]:
    """Check that torch can be imported and reaches the GPU that is there."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield broken(
            "torch", f"cannot be imported: {first_line(error)}", "pip install --force-reinstall torch, or install anew"
        )
        return
    cuda = torch.version.cuda
    yield ok("torch", f"{torch.__version__}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}")
    if torch.cuda.is_available():
        yield from _gpus()
    elif not gpu_is_there() and installed_version("vllm"):
        yield broken(
            "gpu",
            "there is no NVIDIA GPU, and this vLLM is built for one",
            "install kvvideo[cpu] in a new virtual environment",
        )
    elif not gpu_is_there():
        yield ok("gpu", "there is no NVIDIA GPU; the model runs on the CPU")
    elif not cuda:
        yield warning(
            "gpu",
            "there is an NVIDIA GPU, but torch is built for the CPU",
            "install kvvideo[cuda] in a new virtual environment",
        )
    else:
        yield broken("gpu", f"torch does not reach the NVIDIA GPU: {_why_not()}", _mend_driver(cuda))


def gpu_is_there() -> bool:
    """Return True if this machine seems to have an NVIDIA GPU, whatever torch says."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def _gpus() -> Iterator[Finding]:
    from torch import cuda, ones

    driver = _driver()
    for number in range(cuda.device_count()):
        name = f"{cuda.get_device_name(number)}{f', driver {driver}' if driver else ''}"
        try:
            free, total = cuda.mem_get_info(number)
            works = float(ones(2, device=f"cuda:{number}").sum()) == 2
        except RuntimeError as error:
            yield broken("gpu", f"{name} does not compute: {first_line(error)}", _mend_driver(None))
            continue
        says = f"{name}, {format_size(free)} of {format_size(total)} free"
        if not works:
            yield broken("gpu", f"{says}; it computes wrongly", _mend_driver(None))
        elif free < total / 2:
            yield warning("gpu", says, "end what else uses it; 'nvidia-smi' lists that")
        else:
            yield ok("gpu", says)


def _why_not() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it"
    import torch

    try:
        torch.cuda.current_device()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "it says no more"


def _mend_driver(cuda: str | None) -> str:
    need = f" for CUDA {cuda} or newer" if cuda else ""
    return f"unset CUDA_VISIBLE_DEVICES if it is set, and install a driver{need}; 'nvidia-smi' should then list the GPU"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip().partition("\n")[0] or None
