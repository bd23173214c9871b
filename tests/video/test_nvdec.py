"""A GPU's decoding engines: the pictures of the default decoder, or the CPU makes them."""

import logging
from pathlib import Path
from typing import Any

import pytest

from kvvideo.doctor.machine import gpu_is_there
from kvvideo.errors import ConfigError
from kvvideo.types import Chunk
from kvvideo.video import nvdec, read_chunks
from kvvideo.video.decoder import open_decoder
from tests.helpers.clips import CLIPS, H264, H265, Clip, clip, made, same

ON_GPU = pytest.mark.skipif(not gpu_is_there(), reason="needs a GPU")

LARGE = (320, 240)
"""A GPU decodes no HEVC and VP9 below 144 x 144."""

FIT = [
    *[CLIPS[name] for name in ("plain.mp4", "open_gop.mp4", "intra_refresh.mp4", "late_start.ts", "irregular.mkv")],
    CLIPS["bare.h264"],
    Clip("large.mp4", size=(1920, 1080), frames=90, options=H264),
    Clip("hevc_large.mp4", size=LARGE, codec="libx265", options={**H265, "x265-params": "log-level=none:keyint=60"}),
    Clip("vp9_large.webm", 90, size=LARGE, codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}),
]


def chunks_of(path: Path, decoder: str, *grid: float) -> list[Chunk]:
    return list(read_chunks(str(path), *grid, min_pixels=1, max_pixels=24 * 784, decoder=decoder))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "display times" not in r.msg]


@ON_GPU
@pytest.mark.parametrize("grid", [(2, 4), (7.5, 4, 1.3, 8.1)], ids=str)
@pytest.mark.parametrize("wanted", FIT, ids=lambda wanted: wanted.name)
def test_a_gpus_pictures_are_those_of_the_cpu(
    wanted: Clip, grid: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = made(wanted)
    assert same(chunks_of(path, "nvdec", *grid), chunks_of(path, "pyav", *grid))
    assert warnings(caplog) == []


@ON_GPU
@pytest.mark.parametrize("name", ["odd.mp4", "hevc.mp4"])
def test_the_cpu_decodes_what_the_gpu_does_not(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Four samples of colour for four pixels, and pictures that are too small."""
    assert same(chunks_of(clip(name), "nvdec"), chunks_of(clip(name), "pyav"))
    assert "the GPU does not decode" in warnings(caplog)[0]


@pytest.mark.skipif(gpu_is_there(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no NVIDIA GPU here that FFmpeg can use, .*; use --decoder pyav"):
        open_decoder("nvdec", str(clip("plain.mp4")))


@pytest.mark.parametrize("name", ["mpeg2.ts", "mpeg4.mp4", "motion_jpeg.mp4", "av1.mp4"])
def test_what_only_the_cpu_decodes_exactly_is_left_to_it(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such files never get to see the GPU, which therefore need not be there."""
    monkeypatch.setattr(nvdec, "_gpu", lambda: NotImplemented)
    assert same(chunks_of(clip(name), "nvdec"), chunks_of(clip(name), "pyav"))
    assert "which only the CPU decodes exactly" in warnings(caplog)[0]
    with open_decoder("nvdec", str(clip(name))) as decoder:
        assert isinstance(decoder, nvdec.NvdecDecoder)
        assert decoder.hwaccel is None


def test_an_old_pyav_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(device: str, allow_software_fallback: bool = True) -> Any:
        raise AssertionError

    monkeypatch.setattr(nvdec, "HWAccel", old)
    with pytest.raises(ConfigError, match="newer PyAV"):
        open_decoder("nvdec", str(clip("plain.mp4")))
