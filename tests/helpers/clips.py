"""Clips made on the spot, whose frames show their own number: "the wrong frame" is read from pixels."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from kvvideo.errors import VideoError
from kvvideo.types import Chunk

Image = npt.NDArray[np.uint8]

_DIRECTORY = tempfile.TemporaryDirectory(prefix="kvvideo-clips-")
DIRECTORY = Path(_DIRECTORY.name)
ROWS, COLUMNS, BITS = 4, 5, 10


def draw(number: int, width: int, height: int) -> Image:
    """Return a picture of ``number``: its bits and their complements, as a grid of bright and dark fields."""
    bits = [number >> i & 1 for i in range(BITS)]
    image = np.empty((height, width, 3), np.uint8)
    for i, bit in enumerate([*bits, *(1 - bit for bit in bits)]):
        row, column = divmod(i, COLUMNS)
        rows = slice(row * height // ROWS, (row + 1) * height // ROWS)
        image[rows, column * width // COLUMNS : (column + 1) * width // COLUMNS] = 235 if bit else 20
    return image


def read(image: Image) -> int | None:
    """Return the number in a picture; None if it shows none, as when it is damaged or turned."""
    height, width = image.shape[:2]
    fields = []
    for i in range(ROWS * COLUMNS):
        row, column = divmod(i, COLUMNS)
        fields.append(
            image[
                (8 * row + 3) * height // 32 : (8 * row + 5) * height // 32 + 1,
                (8 * column + 3) * width // 40 : (8 * column + 5) * width // 40 + 1,
            ].mean()
            > 128
        )
    bits, complements = fields[:BITS], fields[BITS:]
    if any(bit == complement for bit, complement in zip(bits, complements, strict=True)):
        return None
    return sum(1 << i for i, bit in enumerate(bits) if bit)


@dataclass(frozen=True)
class Clip:
    """Recipe of a clip; ``times`` are in seconds, one per frame."""

    name: str
    frames: int = 300
    rate: int = 30
    size: tuple[int, int] = (160, 120)
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    times: Sequence[float] | None = None
    clock: Fraction | None = None
    first: int = 0
    rotation: tuple[float, bool, bool] | None = None
    stored: Callable[[Image], Image] | None = None
    pixel_ratio: Fraction | None = None
    audio: float = 0.0
    pixels: str | None = None

    def write(self, path: Path) -> None:
        width, height = self.size
        clock = self.clock or Fraction(1, self.rate)
        with av.open(str(path), "w", format=self.format, options=self.container) as out:
            stream: Any = out.add_stream(self.codec, rate=self.rate)
            stored = self.stored or (lambda image: image)
            stream.height, stream.width = stored(draw(0, width, height)).shape[:2]
            stream.pix_fmt = self.pixels or ("yuv444p" if width % 2 or height % 2 else "yuv420p")
            stream.options = self.options
            stream.codec_context.time_base = clock
            if self.pixel_ratio:
                stream.codec_context.sample_aspect_ratio = self.pixel_ratio
            if self.rotation:
                stream.set_display_rotation(*self.rotation)
            sound: Any = out.add_stream("aac", rate=8000, layout="mono") if self.audio else None
            if sound is not None:
                _write_silence(out, sound, self.audio)
            for number in range(self.frames):
                image = np.ascontiguousarray(stored(draw(number, width, height)))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                at = Fraction(number, self.rate) if self.times is None else Fraction(self.times[number])
                frame.pts = round(at / clock) + self.first
                frame.time_base = clock
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))


def _write_silence(out: Any, stream: Any, seconds: float) -> None:
    for i in range(round(seconds * 8000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, i * 1024, Fraction(1, 8000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _irregular(frames: int, seed: int = 7) -> list[float]:
    """Return frame times in whole milliseconds with gaps of 10 ms to 2 s."""
    gaps = np.random.default_rng(seed).choice([10, 33, 40, 100, 400, 2000], frames)
    return [float(t) for t in (np.cumsum(gaps) - gaps[0]) / 1000]


H264 = {"preset": "veryfast", "bf": "3", "g": "60", "sc_threshold": "0", "x264-params": "log-level=none"}
H265 = {"preset": "ultrafast"}
MS = Fraction(1, 1000)

CLIPS = {
    clip.name: clip
    for clip in [
        Clip("plain.mp4", options=H264),
        Clip("long_gop.mp4", frames=600, options={**H264, "g": "250"}),
        Clip("no_b_frames.mp4", options={**H264, "bf": "0"}),
        Clip("open_gop.mp4", options={**H264, "x264-params": "open-gop=1:log-level=none"}),
        Clip("intra_refresh.mp4", options={**H264, "bf": "0", "x264-params": "intra-refresh=1:log-level=none"}),
        Clip("plain.mkv", options=H264),
        Clip("live.mkv", options=H264, container={"live": "1"}),
        Clip("fragments.mp4", options=H264, container={"movflags": "frag_keyframe+empty_moov"}),
        Clip("late_start.ts", options=H264, first=126000, clock=Fraction(1, 90000)),
        Clip("mpeg2.ts", codec="mpeg2video", options={"bf": "2", "g": "15", "qscale": "3"}),
        Clip(
            "hevc.mp4",
            codec="libx265",
            options={**H265, "x265-params": "log-level=none:keyint=60:bframes=4:open-gop=1"},
        ),
        Clip(
            "hevc.ts",
            codec="libx265",
            options={**H265, "x265-params": "log-level=none:keyint=48:bframes=3:open-gop=1"},
        ),
        Clip("mpeg4.mp4", codec="mpeg4", options={"bf": "2", "g": "30", "qscale": "3"}),
        Clip("vp9.webm", frames=90, codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}),
        Clip(
            "av1.mp4",
            frames=120,
            codec="libsvtav1",
            options={"preset": "8", "g": "30", "svtav1-params": "lp=1:crf=5"},
        ),
        Clip("motion_jpeg.mp4", frames=120, codec="mjpeg", options={"qscale": "3", "strict": "unofficial"}),
        Clip("irregular.mp4", times=_irregular(120), frames=120, clock=MS, options=H264),
        Clip("irregular.mkv", times=_irregular(120, 8), frames=120, clock=MS, options=H264),
        Clip("slow.mkv", times=[4.0 * i for i in range(40)], frames=40, clock=MS, options=H264),
        Clip("odd.mp4", frames=90, size=(131, 77), options=H264),
        Clip("one_frame.mp4", frames=1, options=H264),
        Clip("two_frames.mkv", frames=2, options=H264),
        Clip("audio.mp4", options=H264, audio=10.0),
        Clip("longer_audio.mkv", frames=150, options=H264, audio=12.0),
        Clip("pre_roll.mp4", options=H264, first=-45, container={"avoid_negative_ts": "disabled"}),
        Clip("spaced.avi", options=H264),
        Clip("mpeg4.avi", codec="mpeg4", options={"bf": "2", "g": "30", "qscale": "3"}),
        Clip("bare.h264", frames=150, format="h264", options=H264),
    ]
}


@functools.cache
def clip(name: str) -> Path:
    """Return the clip called ``name``, made when first asked for."""
    return made(CLIPS[name])


def made(clip: Clip) -> Path:
    path = DIRECTORY / clip.name
    clip.write(path)
    return path


@functools.cache
def shown(path: Path) -> tuple[list[tuple[float, int]], float]:
    """Return every frame as ``(time, number)``, and the video's end: decoded one by one, nothing skipped.

    This is the reference: plain PyAV, one thread, times from the container and sorted as displayed.
    """
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "NONE"
        origin = Fraction(container.start_time or 0, av.time_base)
        frames = []
        for i, frame in enumerate(container.decode(stream)):
            number = read(frame.to_ndarray(format="rgb24"))
            assert number is not None
            if path.suffix in {".avi", ".h264"}:
                time = Fraction(i, 30)
            else:
                assert frame.pts is not None
                time = frame.pts * stream.time_base - origin
            span = (frame.duration or 0) * stream.time_base or Fraction(1, 30)
            frames.append((float(time), number, float(time + span)))
        whole = (container.duration or 0) / av.time_base
    frames.sort()
    last, end = frames[-1][0], max(end for _, _, end in frames)
    # A packet's duration counts in the order of storage: it may be too long for the last frame.
    end = min(end, whole) if whole > last else end
    return [(time, number) for time, number, _ in frames], end


def expected(path: Path, fps: float, start: float = 0.0, end: float | None = None) -> list[int]:
    """Return the numbers a grid must show: for each moment, the last frame that appears by then."""
    frames, last = shown(path)
    numbers = []
    index = 0
    while (moment := start + index / fps) < (last - 0.005 if end is None else min(end - 1e-6, last - 0.005)):
        seen = [number for time, number in frames if time <= moment + 1e-6]
        numbers.append(seen[-1] if seen else frames[0][1])
        index += 1
    return numbers


def copy(source: Path, target: Path, **options: str) -> Path:
    """Write ``source`` in another container, or with other options."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    return target


def drain(reader: Iterable[Chunk]) -> tuple[list[Chunk], VideoError | None]:
    """Return all chunks there are, and the error that came after them."""
    chunks = []
    try:
        for chunk in reader:
            chunks.append(chunk)
    except VideoError as error:
        return chunks, error
    return chunks, None


def numbers(chunks: Iterable[Chunk]) -> list[int | None]:
    """Return the numbers that the frames of some chunks show."""
    return [read(frame) for chunk in chunks for frame in chunk.frames]


def same(some: Iterable[Chunk], others: Iterable[Chunk]) -> bool:
    """Return True if chunks are the same to the last bit."""
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        (a.times, a.start, a.end, a.fps) == (b.times, b.start, b.end, b.fps) and np.array_equal(a.frames, b.frames)
        for a, b in zip(some, others, strict=True)
    )


def truncated(clip: Path, folder: Path) -> Path:
    """Return the first half of the bytes of ``clip``, in a container that can be read so far."""
    whole = copy(clip, folder / "whole.mkv")
    cut = folder / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return cut
