#!/usr/bin/env python3
"""Streams drawn from a seed, each a small file, held against a plain decode of all of it.

    python -m tests.helpers.streams [--seed 3] [--count 400] [--only 017] [--decoder nvdec] [--keep DIRECTORY]

Containers, codecs, groups of pictures, clocks, edit lists, flags and headers are mixed as files in the world mix them.
Each picture shows its own number, so the wrong one is seen. For each stream, moments are sampled by kvvideo from the
beginning and after two others, by 1, 2 and 8 lanes, at 0.25, 2 and 10 frames/s; number and time must be those of the
last picture that a decoder gives by then which reads all packets in order. That reference shares no code with kvvideo.

A stream which the plain decode itself does not read well is left out. Prints a line per stream that fails, and
a table; exit code 1 if one fails. Needs av, numpy and pillow only.
"""

import argparse
import bisect
import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import random
import shutil
import struct
import sys
import tempfile
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

os.environ.setdefault("SVT_LOG", "1")

ROWS, COLUMNS, BITS = 4, 5, 10
LANES = (1, 2, 8)
RATES = (0.25, 2.0, 10.0)
CHUNK = 8.0
"""Seconds; an even number of pictures at all of ``RATES``."""
TIE = 2e-6
"""Seconds by which the clocks of containers are rounded: a picture this close to a moment may be taken or not."""
SLACK = 0.1
"""Seconds after the last picture's end in which it may still be sampled."""

Boxes = list[list[Any]]
"""Boxes of an MP4 file: pairs of a kind and either bytes or boxes."""


# Pictures


def draw(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A picture of ``number`` as ``yuv420p``: its bits and their complements, as a grid of bright and dark fields."""
    image = np.full((height * 3 // 2, width), 128, np.uint8)
    for i in range(2 * BITS):
        row, column = divmod(i, COLUMNS)
        bit = number >> i % BITS & 1 ^ i // BITS
        rows = slice(row * height // ROWS, (row + 1) * height // ROWS)
        image[rows, column * width // COLUMNS : (column + 1) * width // COLUMNS] = 235 if bit else 20
    return image


def read(image: npt.NDArray[np.uint8]) -> int | None:
    """The number that ``image`` ``[height, width, …]`` shows; None if it shows none, as when it is damaged."""
    height, width = image.shape[:2]
    bits = []
    for i in range(2 * BITS):
        row, column = divmod(i, COLUMNS)
        top, left = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
        bits.append(bool(image[top - 1 : top + 2, left - 1 : left + 2].mean() > 128))
    if any(one == other for one, other in zip(bits[:BITS], bits[BITS:], strict=True)):
        return None
    return sum(1 << i for i, bit in enumerate(bits[:BITS]) if bit)


# Descriptions


@dataclass(frozen=True)
class Part:
    """A run of an encoder; ``times`` are the seconds at which its pictures are shown."""

    times: tuple[Fraction, ...]
    size: tuple[int, int]
    options: dict[str, str]


@dataclass(frozen=True)
class Stream:
    """Recipe of a stream.

    Attributes:
        kind: the property that it was drawn for.
        parts: runs of the encoder, one after the other.
        clock: seconds in a tick of the encoder.
        muxing: options of the container.
        sound: seconds of sound, from 0 on, in each of ``tracks``.
        inband: whether runs after the first bring their headers in their packets, not beside them.
        flags: which packets are called keyframes, if not those that are: ``all``, ``first``, or ``wrong`` ones.
        once: whether only the first keyframe has headers.
        packed: whether B-pictures are stored with the picture before them.
        edits: what is shown, as ``(begin, length)`` in seconds; nothing where ``begin`` is None.
    """

    name: str
    kind: str
    codec: str
    suffix: str
    rate: int
    clock: Fraction
    parts: tuple[Part, ...]
    seed: int
    muxing: dict[str, str] = field(default_factory=dict)
    sound: float = 0.0
    tracks: int = 0
    inband: bool = False
    flags: str = ""
    once: bool = False
    packed: bool = False
    edits: tuple[tuple[float | None, float], ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        said = [f"{self.name}: {self.codec} in {self.suffix}, {self.rate}/s"]
        for part in self.parts:
            size = "x".join(map(str, part.size))
            began, ended = float(part.times[0]), float(part.times[-1])
            said.append(f"{len(part.times)} of {size} from {began:g} to {ended:g} s {part.options}")
        for name in ("muxing", "sound", "tracks", "inband", "flags", "once", "packed", "edits"):
            if value := getattr(self, name):
                said.append(f"{name}={value}")
        return "; ".join(said)


H264, HEVC, MPEG4, MPEG2 = "libx264", "libx265", "mpeg4", "mpeg2video"
VP8, VP9, AV1, PRORES, JPEG = "libvpx", "libvpx-vp9", "libsvtav1", "prores_ks", "mjpeg"
NAMES = {
    H264: "h264",
    HEVC: "hevc",
    MPEG4: "mpeg4",
    MPEG2: "mpeg2",
    VP8: "vp8",
    VP9: "vp9",
    AV1: "av1",
    PRORES: "prores",
    JPEG: "mjpeg",
}
MOST = {H264: 240, HEVC: 110, VP9: 130, AV1: 70, PRORES: 60, JPEG: 150}
"""Pictures of one stream at most, where encoding is slow."""
SIZES = [(64, 48), (80, 64), (96, 72), (112, 80), (128, 96)]

PAIRS = [
    *((codec, "mp4") for codec in (H264, HEVC, MPEG4, MPEG2, VP9, AV1, JPEG)),
    *((codec, "mov") for codec in (H264, HEVC, MPEG4, MPEG2, PRORES, JPEG)),
    *((codec, "mkv") for codec in NAMES),
    *((codec, "webm") for codec in (VP8, VP9, AV1)),
    *((codec, "ts") for codec in (H264, HEVC, MPEG4, MPEG2)),
    *((codec, "flv") for codec in (H264, HEVC)),
    *((codec, "avi") for codec in (H264, MPEG4, MPEG2, JPEG)),
    *((codec, "3gp") for codec in (H264, MPEG4)),
    (VP8, "ogg"),
    *((codec, "mxf") for codec in (H264, MPEG2, PRORES)),
]
"""Codecs and the containers that take them."""
BOXED = [pair for pair in PAIRS if pair[1] in {"mp4", "mov", "3gp"}]
LOUD = {
    "mp4": "aac",
    "mov": "aac",
    "3gp": "aac",
    "mkv": "aac",
    "ts": "aac",
    "flv": "aac",
    "webm": "libopus",
    "avi": "mp2",
}
FRAGMENTS = [
    "frag_keyframe+empty_moov",
    "frag_keyframe+empty_moov+default_base_moof",
    "frag_every_frame+empty_moov",
    "frag_keyframe",
    "cmaf+frag_keyframe",
    "frag_keyframe+delay_moov",
    "dash+frag_keyframe+delay_moov",
    "frag_keyframe+empty_moov+separate_moof",
    "frag_keyframe+empty_moov+negative_cts_offsets",
    "frag_keyframe+empty_moov+skip_trailer",
    "frag_keyframe+empty_moov+omit_tfhd_offset",
]
KINDS = [
    "plain",
    "edits",
    "parts",
    "plain",
    "flags",
    "late",
    "fragments",
    "edits",
    "vary",
    "once",
    "plain",
    "edits",
    "parts",
    "flags",
    "vary",
    "fragments",
    "late",
    "edits",
    "flags",
    "plain",
    "parts",
    "flags",
]


def described(seed: int, count: int, large: bool = False) -> list[Stream]:
    """``count`` streams; the same for the same ``seed``. ``large`` pictures are of a size that GPUs decode too."""
    return [_described(seed, index, large) for index in range(count)]


def _described(seed: int, index: int, large: bool) -> Stream:
    rng = random.Random(f"{seed} {index}")
    kind = KINDS[index % len(KINDS)]
    turn = index // len(KINDS) * KINDS.count(kind) + KINDS[: index % len(KINDS)].count(kind)
    pairs = PAIRS
    if kind == "edits":
        pairs = [*BOXED, (H264, "mp4"), (H264, "mov"), (HEVC, "mp4"), (H264, "mp4"), (MPEG4, "mp4")]
    elif kind == "flags":
        pairs = [pair for pair in PAIRS if pair[1] not in {"ogg", "mxf"} and pair[0] not in {PRORES, JPEG}]
    elif kind == "fragments":
        pairs = [pair for pair in PAIRS if pair[1] == "mp4" and pair[0] not in {MPEG2, JPEG}] + [(H264, "mov")]
    elif kind == "late":
        pairs = [pair for pair in PAIRS if pair[1] in LOUD and pair[1] != "avi"]
    elif kind == "vary":
        pairs = [pair for pair in PAIRS if pair[1] not in {"avi", "ogg", "mxf"} and pair[0] != MPEG2]
    elif kind == "parts":
        pairs = [
            (H264, "mp4"),
            (H264, "flv"),
            (HEVC, "mp4"),
            (H264, "ts"),
            (H264, "mkv"),
            (HEVC, "mkv"),
            (H264, "mov"),
            (HEVC, "ts"),
            (MPEG2, "ts"),
            (VP9, "webm"),
            (HEVC, "flv"),
            (VP8, "webm"),
            (MPEG4, "ts"),
            (MPEG2, "mkv"),
            (AV1, "mkv"),
            (H264, "avi"),
            (HEVC, "mov"),
            (AV1, "mp4"),
            (H264, "3gp"),
        ]
    elif kind == "once":
        pairs = [(AV1, "mp4"), (H264, "ts"), (AV1, "mkv"), (MPEG4, "ts"), (HEVC, "ts"), (MPEG4, "avi"), (AV1, "webm")]
        pairs += [(H264, "avi"), (MPEG2, "ts"), (MPEG4, "mkv")]
    # Each pair comes as often as the others, and each seed begins with another.
    codec, suffix = pairs[(turn + seed) % len(pairs)]
    return _drawn(rng, index, kind, codec, suffix, large)


def _drawn(rng: random.Random, index: int, kind: str, codec: str, suffix: str, large: bool) -> Stream:
    rate = rng.choice([24, 25, 30] if codec == MPEG2 or suffix == "mxf" else [10, 12, 15, 20, 24, 25, 30])
    frames = min(MOST.get(codec, 260), round(rng.uniform(4, 13) * rate))
    style, options = _coding(rng, codec)
    if (codec, suffix) == (H264, "mxf"):  # FFmpeg writes no times for pictures out of order
        style, options = "nob-b0", {"bf": "0", "g": "12", "x264-params": "log-level=none:threads=1"}
    size = rng.choice([(96, 64), (128, 96)] if codec == AV1 else SIZES)
    size = (size[0] * 2 + 32, size[1] * 2 + 48) if large else size
    tick = Fraction(1, rate)
    times = [i * tick for i in range(frames)]
    if kind == "vary":
        tick = Fraction(1, 1000)
        gaps = rng.choice([[20, 33, 40, 100, 250, 700], [33, 34, 33, 1500], [40, 80, 120], [10, 15, 500, 50]])
        times = [Fraction(at, 1000) for at in itertools.accumulate(rng.choices(gaps, k=min(frames, 140)))]
    parts = [Part(tuple(times), size, options)]
    told = [f"{index:03}", NAMES[codec], suffix, kind, style]
    settings: dict[str, Any] = {"muxing": {}, "seed": rng.getrandbits(30)}
    if kind == "parts":
        parts = _split(rng, codec, parts[0], tick)
        boxed = suffix in {"mp4", "mov", "3gp"}
        settings["inband"] = rng.random() < 0.2 if boxed else suffix != "flv"
        told += ["sizes"] if len({part.size for part in parts}) > 1 else []
        told += ["inband"] if boxed and settings["inband"] else []
    elif kind == "flags":
        settings["flags"] = rng.choice(["all", "all", "first", "wrong"])
        told.append(settings["flags"])
    elif kind == "once":
        settings["once"] = True
    elif kind == "fragments":
        settings["muxing"]["movflags"] = rng.choice(FRAGMENTS)
        told.append(settings["muxing"]["movflags"].replace("frag_", "").replace("+", "_"))
    elif kind == "edits":
        settings["edits"], how = _cuts(rng, float(times[-1] + tick), float(tick))
        told.append(how)
    begins = _placed(rng, kind, suffix, tick, parts[-1].times[-1], settings, told)
    if suffix in {"mkv", "webm"} and rng.random() < 0.25:
        settings["muxing"]["live"] = "1"
        told.append("live")
    if codec == MPEG4 and suffix == "avi" and options["bf"] == "1":
        settings["packed"] = True
        told.append("packed")
    moved = tuple(dataclasses.replace(part, times=tuple(at + begins for at in part.times)) for part in parts)
    return Stream("-".join(told), kind, codec, suffix, rate, tick, moved, **settings)


def _placed(
    rng: random.Random,
    kind: str,
    suffix: str,
    tick: Fraction,
    last: Fraction,
    settings: dict[str, Any],
    told: list[str],
) -> Fraction:
    """Seconds at which the first picture is to come; adds sound, which begins at 0."""
    begins = Fraction(0)
    if kind == "late":
        begins = round(rng.choice([3, 7, 11.5, 12]) / tick) * tick
        settings["sound"] = float(begins + last) + rng.choice([-2, 0, 3])
        settings["tracks"] = 1 if suffix == "flv" else rng.choice([1, 2, 3])
        told.append(f"{float(begins):.0f}s")
        return begins
    if kind != "edits" and suffix not in {"avi", "ogg", "mxf"} and rng.random() < 0.4:
        # FFmpeg writes an edit that hides pictures before 0: it needs true flags.
        trimmed = suffix in {"mp4", "mov"} and kind != "flags" and rng.random() < 0.4
        if trimmed:
            begins = -rng.randint(1, round(1.5 / tick)) * tick
            settings["muxing"]["avoid_negative_ts"] = "disabled"
        else:
            begins = round(rng.choice([1.4, 100, 5000]) / tick) * tick
        told.append("negative" if trimmed else "far")
    if kind != "vary" and suffix in LOUD and begins < 10 and rng.random() < 0.2:
        settings["sound"], settings["tracks"] = float(begins + last) * rng.uniform(0.6, 1.2), 1
        told.append("sound")
    return begins


def _coding(rng: random.Random, codec: str) -> tuple[str, dict[str, str]]:
    """A name for how pictures refer to each other, and the options of ``codec`` for it."""
    group = rng.choice([8, 12, 15, 24, 30, 50])
    if codec == H264:
        style = rng.choice(["closed", "open", "pyramid", "openpyramid", "strict", "intra", "nob", "long", "refresh"])
        depth = {"intra": 0, "nob": 0, "refresh": 0, "closed": 2, "open": 2}.get(style, rng.choice([3, 4, 5]))
        group = {"intra": 1, "long": 1000}.get(style, group)
        params = ["log-level=none", "threads=1", f"scenecut={rng.choice([0, 0, 40])}", f"b-adapt={rng.choice([0, 1])}"]
        params.append(f"b-pyramid={'strict' if style == 'strict' else 'normal' if 'pyramid' in style else 'none'}")
        params += ["open-gop=1"] if "open" in style else []
        params += ["intra-refresh=1"] if style == "refresh" else []
        params.append(f"ref={rng.choice([1, 2, 4])}")
        options = {"preset": rng.choice(["ultrafast", "superfast", "veryfast"]), "bf": str(depth), "g": str(group)}
        return f"{style}-b{depth}", {**options, "x264-params": ":".join(params)}
    if codec == HEVC:
        style = rng.choice(["closed", "open", "pyramid", "openpyramid", "intra", "nob", "long"])
        depth = {"intra": 0, "nob": 0, "closed": 2, "open": 2}.get(style, rng.choice([3, 4]))
        group = {"intra": 1, "long": 1000}.get(style, group)
        params = ["log-level=none", "pools=none", "frame-threads=1", "ctu=16", "scenecut=0", f"keyint={group}"]
        params += [f"min-keyint={group}", f"bframes={depth}", "b-adapt=0", f"b-pyramid={int('pyramid' in style)}"]
        params.append(f"open-gop={int('open' in style)}")
        return f"{style}-b{depth}", {"preset": "ultrafast", "x265-params": ":".join(params)}
    if codec in {MPEG4, MPEG2}:
        depth = rng.choice([0, 1, 2, 2] if codec == MPEG2 else [0, 1, 1, 2, 3])
        options = {"g": str(rng.choice([1, 9, 12, 15, 30])), "bf": str(depth), "b": "1M", "strict": "unofficial"}
        closed = rng.random() < 0.3
        options |= {"flags": "+cgop", "sc_threshold": "1000000000"} if closed else {}
        return f"{'closed' if closed else 'open'}-b{depth}", options
    if codec in {VP8, VP9}:
        hidden = rng.random() < 0.5
        options = {"deadline": rng.choice(["good", "realtime"]), "g": str(group), "b": "300k"}
        options["cpu-used"] = "-8" if codec == VP8 else "8"  # VP8 adapts to the machine's speed otherwise
        options |= (
            {"auto-alt-ref": "1", "lag-in-frames": "12"} if hidden else {"auto-alt-ref": "0", "lag-in-frames": "0"}
        )
        return "altref" if hidden else "nolag", {**options, "threads": "1"}
    if codec == AV1:
        low = rng.random() < 0.3
        params = "lp=1:crf=4" + (":pred-struct=1" if low else "")
        return "low" if low else "pyramid", {"preset": "8", "g": str(group), "svtav1-params": params}
    return "intra", {"profile": "0"} if codec == PRORES else {"strict": "unofficial", "qmin": "2", "qmax": "6"}


def _split(rng: random.Random, codec: str, whole: Part, tick: Fraction) -> list[Part]:
    """``whole`` as runs of the encoder with other settings, with a pause between them."""
    count = rng.choice([2, 2, 3])
    ends = [len(whole.times) * (i + 1) // count for i in range(count)]
    sizes = codec not in {AV1} and rng.random() < 0.35
    parts = []
    for number, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        pause = number * max(8, round(rng.choice([0.4, 0.5, 0.8]) / tick)) * tick
        options = dict(whole.options) if number == 0 else _coding(rng, codec)[1]
        if codec == H264 and number:
            options["profile"] = rng.choice(["baseline", "main", "high"])
            if options["profile"] == "baseline":
                options |= {"bf": "0", "x264-params": options["x264-params"].replace("b-pyramid", "b-bias=0:b-pyramid")}
        # Of the same shape: how another shape would be shown is not this corpus' matter.
        size = tuple(2 * side for side in whole.size) if sizes and number % 2 else whole.size
        parts.append(Part(tuple(at + pause for at in whole.times[begin:end]), (size[0], size[1]), options))
    return parts


def _cuts(rng: random.Random, end: float, span: float) -> tuple[tuple[tuple[float | None, float], ...], str]:
    """Edits of a video of ``end`` seconds, and their name."""

    def at(low: float, high: float) -> float:
        time = rng.uniform(low, high)
        return round(time / span) * span if rng.random() < 0.5 else round(time, 3)

    how = rng.choice(["trim", "cuts", "cuts", "repeat", "repeat", "backwards", "backwards", "empty", "gap", "mixed"])
    if how == "trim":
        begin = at(0.1 * end, 0.6 * end)
        return ((begin, at(1.5, end - begin - span)),), how
    if how == "repeat":
        begin = at(0, 0.4 * end)
        length = at(1, min(4.0, end - begin - span))
        return ((begin, length),) * rng.choice([2, 3]), how
    bounds = sorted(at(0, end - span) for _ in range(2 * rng.choice([2, 3])))
    pieces: list[tuple[float | None, float]] = []
    for begin, until in zip(bounds[::2], bounds[1::2], strict=True):
        pieces.append((begin, max(0.7, until - begin) if begin + 0.7 < end else max(0.2, end - begin)))
    if how == "backwards":
        pieces.reverse()
    elif how == "empty":
        pieces = [(None, at(0.5, 4)), pieces[-1]]
    elif how == "gap":
        pieces.insert(1, (None, at(0.5, 2)))
    elif how == "mixed":
        rng.shuffle(pieces)
        pieces = [(None, 1.0), *pieces, pieces[0]]
    return tuple(pieces), how


# Files


def write(stream: Stream, path: Path) -> None:
    """Make the file."""
    muxer = {"ts": "mpegts", "mkv": "matroska"}.get(stream.suffix, stream.suffix)
    muxing = {"write_crc32": "0", **stream.muxing} if muxer in {"matroska", "webm"} else stream.muxing
    headers: list[bytes] = []
    first = 0  # packets of the first part
    with av.open(str(path), "w", format=muxer, options=muxing) as out:
        video: Any = out.add_stream(stream.codec, rate=stream.rate)
        tracks = [out.add_stream(LOUD[stream.suffix], rate=48000) for _ in range(stream.tracks)]
        packets = list(_encoded(stream, 0, video, video.codec_context))
        first = len(packets)
        for number in range(1, len(stream.parts)):
            beside = not stream.inband and muxer in {"mp4", "mov", "3gp", "flv"}
            more, header = _run_again(stream, number, beside, path)
            headers += [header] if beside and header else []
            packets += more
        packets = _altered(stream, packets)
        for packet in packets:
            packet.stream = video
        for track in tracks:
            packets += _silence(track, stream.sound)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        out.mux(packets)
    if muxer in {"mp4", "mov", "3gp"} and (headers or stream.edits):
        counts = [first] + [len(part.times) for part in stream.parts[1:]]
        _edit_boxes(path, stream.edits, headers, counts)
    elif muxer == "flv" and headers:
        _add_sequence_headers(path, stream, headers)


def _encoded(stream: Stream, number: int, video: Any, codec: Any) -> Iterator[Any]:
    """Packets of part ``number``."""
    part = stream.parts[number]
    codec.width, codec.height = part.size
    codec.pix_fmt = "yuv422p10le" if stream.codec == PRORES else "yuv420p"
    codec.options = part.options
    codec.time_base = stream.clock
    codec.thread_count = 1
    shown = sum(len(before.times) for before in stream.parts[:number])
    for i, at in enumerate(part.times):
        frame = av.VideoFrame.from_ndarray(draw(shown + i, *part.size), format="yuv420p")
        frame.pts, frame.time_base = round(at / stream.clock), stream.clock
        yield from video.encode(frame)
    yield from video.encode(None)


def _run_again(stream: Stream, number: int, beside: bool, path: Path) -> tuple[list[Any], bytes]:
    """Packets of a later part, and the sample entry that an MP4 file has for them."""
    codec: Any = av.CodecContext.create(stream.codec, "w")
    codec.framerate = stream.rate
    if beside:
        codec.flags |= av.codec.context.Flags.global_header
    packets = list(_encoded(stream, number, codec, codec))
    if not beside:
        return packets, b""
    alone = path.with_name(f"{path.stem}-{number}.mp4")
    kept = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
    with av.open(str(alone), "w", format="mov" if stream.suffix == "mov" else "mp4") as out:
        video: Any = out.add_stream(stream.codec, rate=stream.rate)
        for packet in _encoded(dataclasses.replace(stream, edits=()), number, video, video.codec_context):
            out.mux(packet)
    entry = _inside(_boxes(alone.read_bytes()), "moov/trak/mdia/minf/stbl/stsd")[1][8:]
    alone.unlink()
    return [_packet(data, packet) for (data, *_), packet in zip(kept, packets, strict=True)], entry


def _packet(data: bytes, like: Any) -> Any:
    """``data`` with the times and flags of ``like``."""
    packet = av.Packet(data)
    packet.pts, packet.dts, packet.time_base = like.pts, like.dts, like.time_base
    packet.duration, packet.is_keyframe = like.duration, like.is_keyframe
    return packet


def _silence(track: Any, seconds: float) -> list[Any]:
    """Packets of silence; ``track`` takes them."""
    packets = []
    audio = track.codec_context
    form = {"aac": "fltp", "libopus": "flt", "mp2": "s16"}[audio.name]
    audio.layout, audio.format = "mono", form
    audio.bit_rate = 32000
    audio.time_base = Fraction(1, 48000)
    audio.open()
    size = audio.frame_size or 1024
    kind = {"fltp": np.float32, "flt": np.float32, "s16": np.int16}[form]
    for i in range(round(seconds * 48000 / size)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, size), kind), format=form, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, i * size, Fraction(1, 48000)
        packets += track.encode(frame)
    return packets + track.encode(None)


def _altered(stream: Stream, packets: list[Any]) -> list[Any]:
    """The packets with other flags, without later headers, or with B-pictures packed."""
    rng = random.Random(stream.seed)
    if stream.once:
        later = [packet for packet in packets if packet.is_keyframe][1:]
        packets = [_packet(_stripped(stream, bytes(p)), p) if p in later else p for p in packets]
    if stream.packed:
        packets = _packed(packets)
    for number, packet in enumerate(packets):
        if stream.flags == "all":
            packet.is_keyframe = True
        elif stream.flags == "first":
            packet.is_keyframe = number == 0
        elif stream.flags == "wrong" and number and rng.random() < (0.5 if packet.is_keyframe else 0.1):
            packet.is_keyframe = not packet.is_keyframe
    return packets


def _stripped(stream: Stream, data: bytes) -> bytes:
    """A keyframe's packet without the headers that all pictures share."""
    if stream.codec in {H264, HEVC}:
        kept = []
        for unit in data.split(b"\0\0\1")[1:]:
            kind = unit[0] & 31 if stream.codec == H264 else unit[0] >> 1 & 63
            if kind not in ({7, 8} if stream.codec == H264 else {32, 33, 34}):
                kept.append(unit)
        return b"".join(b"\0\0\1" + unit for unit in kept)
    if stream.codec == AV1:
        at, out = 0, b""
        while at < len(data):
            head = 2 if data[at] & 4 else 1
            length, shift, begin = 0, 0, at + head
            while True:
                length |= (data[begin] & 127) << shift
                shift, begin = shift + 7, begin + 1
                if not data[begin - 1] & 128:
                    break
            out += data[at : begin + length] if data[at] >> 3 & 15 != 1 else b""
            at = begin + length
        return out
    # MPEG-2 and MPEG-4: from the group's header or the picture on.
    marks = [b"\0\0\1\xb8", b"\0\0\1\0"] if stream.codec == MPEG2 else [b"\0\0\1\xb3", b"\0\0\1\xb6"]
    return data[min(at for at in map(data.find, marks) if at >= 0) :]


def _packed(packets: list[Any]) -> list[Any]:
    """As DivX stores B-pictures: behind the picture before, and in their place one that is not coded."""
    out: list[Any] = []
    holds = False  # whether the packet before has a B-picture in it
    slots = sorted(packet.dts for packet in packets)
    bodies: list[tuple[bytes, bool]] = []
    for packet in packets:
        data = bytes(packet)
        kind = data[data.find(b"\0\0\1\xb6") + 4] >> 6
        if kind == 2 and bodies and not holds:
            bodies[-1] = bodies[-1][0] + data, bodies[-1][1]
            bodies.append((b"\0\0\1\xb6\x5f\xff"[:4] + b"\x5a\x7f", False))
            holds = True
        else:
            bodies.append((data, packet.is_keyframe))
            holds = False
    first, key = bodies[0]
    at = first.find(b"\0\0\1\xb6")
    group = first.find(b"\0\0\1\xb3")
    at = group if 0 <= group < at else at
    bodies[0] = first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:], key
    for (data, key), slot, like in zip(bodies, slots, packets, strict=True):
        packet = _packet(data, like)
        packet.pts = packet.dts = slot
        packet.is_keyframe = key
        out.append(packet)
    return out


# Boxes of MP4 files

NESTED = {"moov", "trak", "edts", "mdia", "minf", "stbl"}


def _boxes(data: bytes) -> Boxes:
    found, at = [], 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        body = data[at + 8 : at + size]
        found.append([kind, _boxes(body) if kind in NESTED else body])
        at += size
    return found


def _bytes(boxes: Boxes) -> bytes:
    parts = [(kind, body if isinstance(body, bytes) else _bytes(body)) for kind, body in boxes]
    return b"".join(struct.pack(">I", 8 + len(body)) + kind.encode("latin-1") + body for kind, body in parts)


def _inside(boxes: Boxes, path: str) -> list[Any]:
    """The first box at ``path``."""
    kind, _, rest = path.partition("/")
    box = next(box for box in boxes if box[0] == kind)
    return _inside(box[1], rest) if rest else box


def _has(boxes: Boxes, kind: str) -> bool:
    return any(box[0] == kind for box in boxes)


def _edit_boxes(
    path: Path, edits: Sequence[tuple[float | None, float]], entries: list[bytes], counts: list[int]
) -> None:
    """Write an edit list, or sample entries for later parts, into the file's index, which is at its end."""
    boxes = _boxes(path.read_bytes())
    assert boxes[-1][0] == "moov"
    moov = boxes[-1][1]
    track = next(box[1] for box in moov if box[0] == "trak" and _inside(box[1], "mdia/hdlr")[1][8:12] == b"vide")
    if edits:
        _edit(moov, track, edits)
    if entries:
        _describe(_inside(track, "mdia/minf/stbl")[1], entries, counts)
    path.write_bytes(_bytes(boxes))


def _edit(moov: Boxes, track: Boxes, edits: Sequence[tuple[float | None, float]]) -> None:
    (scale,) = struct.unpack(">I", _inside(moov, "mvhd")[1][12:16])
    (ticks,) = struct.unpack(">I", _inside(track, "mdia/mdhd")[1][12:16])
    shift = 0  # media time of the first picture: B-pictures delay it
    if _has(track, "edts"):
        old = _inside(track, "edts/elst")[1]
        shift = max(struct.unpack(">i", old[at + 4 : at + 8])[0] for at in range(8, len(old), 12))
    body, whole = struct.pack(">II", 0, len(edits)), 0
    for begin, length in edits:
        lasts = round(length * scale)
        body += struct.pack(">IiI", lasts, -1 if begin is None else shift + round(begin * ticks), 1 << 16)
        whole += lasts
    edts = ["edts", [["elst", body]]]
    if _has(track, "edts"):
        track[track.index(_inside(track, "edts"))] = edts
    else:
        track.insert(1, edts)
    head = _inside(track, "tkhd")
    head[1] = head[1][:20] + struct.pack(">I", whole) + head[1][24:]
    longest = max(struct.unpack(">I", _inside(box[1], "tkhd")[1][20:24])[0] for box in moov if box[0] == "trak")
    movie = _inside(moov, "mvhd")
    movie[1] = movie[1][:16] + struct.pack(">I", longest) + movie[1][20:]


def _describe(table: Boxes, entries: list[bytes], counts: list[int]) -> None:
    """Give each part of ``counts`` samples an entry of its own, and each sample a chunk."""
    stsd = _inside(table, "stsd")
    stsd[1] = struct.pack(">II", 0, 1 + len(entries)) + stsd[1][8:] + b"".join(entries)
    sizes = _inside(table, "stsz")[1]
    same, count = struct.unpack(">II", sizes[4:12])
    lengths = [same] * count if same else list(struct.unpack(f">{count}I", sizes[12 : 12 + 4 * count]))
    offsets = _inside(table, "stco")[1]
    chunks = struct.unpack(f">{(len(offsets) - 8) // 4}I", offsets[8:])
    runs = _inside(table, "stsc")[1]
    firsts = [struct.unpack(">III", runs[at : at + 12]) for at in range(8, len(runs), 12)]
    places: list[int] = []
    for number, place in enumerate(chunks, 1):
        samples = [run[1] for run in firsts if run[0] <= number][-1]
        begin = len(places)
        places += itertools.accumulate(lengths[begin : begin + samples - 1], initial=place)
    assert len(places) == count == sum(counts), (len(places), count, counts)
    offsets = struct.pack(f">II{count}I", 0, count, *places)
    _inside(table, "stco")[1] = offsets
    begins = itertools.accumulate(counts[:-1], initial=1)
    runs = b"".join(struct.pack(">III", begin, 1, number) for number, begin in enumerate(begins, 1))
    _inside(table, "stsc")[1] = struct.pack(">II", 0, len(counts)) + runs


def _add_sequence_headers(path: Path, stream: Stream, entries: list[bytes]) -> None:
    """Put a header before the first packet of each later part of an FLV file."""
    data = path.read_bytes()
    at, out, seen = 13, data[:13], 0
    counts = list(itertools.accumulate(len(part.times) for part in stream.parts))
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        tag, at = data[at : at + size + 15], at + size + 15
        extended = bool(tag[11] & 0x80)
        if tag[0] == 9 and (tag[11] & 15 in {1, 3} if extended else tag[12] == 1):
            if seen in counts[:-1]:
                kind = b"hvcC" if extended else b"avcC"
                entry = entries[counts.index(seen)]
                place = entry.index(kind)
                header = entry[place + 4 : place - 4 + int.from_bytes(entry[place - 4 : place], "big")]
                body = (b"\x90hvc1" if extended else b"\x17\0\0\0\0") + header
                new = b"\x09" + len(body).to_bytes(3, "big") + tag[4:8] + b"\0\0\0" + body
                out += new + len(new).to_bytes(4, "big")
            seen += 1
        out += tag
    path.write_bytes(out)


# The reference


@dataclass(frozen=True)
class Shown:
    """Result of a plain decode.

    Attributes:
        times: of pictures, in seconds from the container's beginning, increasing.
        numbers: what they show.
        end: when the last one is surely gone.
        keys: times of pictures that are complete in themselves.
        open: spans of time in which pictures overlap: what is shown there is not settled.
        lost: times and numbers of pictures which are in the file and the decoder loses, where headers change.
    """

    times: list[float]
    numbers: list[int]
    end: float
    keys: list[float]
    open: list[tuple[float, float]]
    lost: list[tuple[float, int]] = field(default_factory=list)

    def allows(self, moment: float, number: int | None, time: float) -> bool:
        """Return True if a picture of ``number`` that says it appeared at ``time`` may be sampled at ``moment``."""
        if any(begin - TIE <= moment < end + TIE for begin, end in self.open):
            return number is not None
        for slack in (1e-6 - TIE, 1e-6 + TIE):  # the clock may be rounded either way
            at, wanted = self.at(moment, slack)
            if number == wanted and abs(time - at) < 1e-5:
                return True
            # Their times are not the container's, which may be whole milliseconds.
            missed = [each for each in self.lost if at < each[0] <= moment + 1e-3]
            if missed and number == missed[-1][1] and abs(time - missed[-1][0]) < 1e-3:
                return True
        return False

    def at(self, moment: float, slack: float = 1e-6) -> tuple[float, int]:
        """Time and number of the last picture that appears by ``moment``; else of the first."""
        place = max(0, bisect.bisect_right(self.times, moment + slack) - 1)
        return self.times[place], self.numbers[place]


class Unreadable(Exception):
    """A plain decode does not read the stream well: nothing can be held against it."""


def shown(path: Path, stream: Stream) -> Shown:
    """Decode all packets in order with one thread. Pictures that an edit list hides are those FFmpeg hides.

    Raises:
        Unreadable: if a packet fails, a picture shows no number, or many are lost or overlap.
    """
    found, end = _decoded(path)
    if len(found) < 2:
        raise Unreadable(f"{len(found)} pictures")
    if bad := [round(time, 3) for time, number, _ in found if number is None]:
        raise Unreadable(f"no number at {bad[:5]}")
    times: list[float] = []
    numbers: list[int] = []
    late: list[tuple[int, float]] = []  # pictures that come when a later one was shown: its place, their time
    for time, number, _ in found:
        if times and time <= times[-1]:
            late.append((len(times), time))
        else:
            times.append(time)
            numbers.append(number or 0)
    spans = [(time, times[place] if place < len(times) else times[-1]) for place, time in late]
    if sum(until - begin for begin, until in spans) > 0.3 * times[-1]:
        raise Unreadable(f"pictures overlap at {[round(begin, 3) for begin, _ in spans][:5]}")
    lost: list[tuple[float, int]] = []
    if not stream.edits:
        told = [at for part in stream.parts for at in part.times]
        for missed in sorted(set(range(numbers[0], len(told))) - {number for _, number, _ in found}):
            lost.append((times[0] + float(told[missed] - told[numbers[0]]), missed))
        if len(lost) > 2 * len(stream.parts):
            raise Unreadable(f"pictures are lost: {[number for _, number in lost][:5]}")
    gap = max(after - before for before, after in itertools.pairwise(times))
    return Shown(times, numbers, max(end, times[-1] + gap) + SLACK, [t for t, _, key in found if key], spans, lost)


def _decoded(path: Path) -> tuple[list[tuple[float, int | None, bool]], float]:
    """Time, number, and whether it is complete in itself, of all pictures in the order they come; and the end."""
    found: list[tuple[float, int | None, bool]] = []
    stored: list[float] = []
    end = 0.0
    try:
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            video.thread_type = "NONE"
            tick: Any = video.time_base
            origin = None if container.start_time is None else Fraction(container.start_time, 1_000_000)
            for packet in container.demux(video):
                if packet.size and packet.dts is not None:
                    stored.append(float(packet.dts * tick))
                for frame in packet.decode():
                    if frame.pts is None:
                        raise Unreadable("a picture without a time")
                    if origin is None:
                        origin = frame.pts * tick
                    time = float(frame.pts * tick - origin)
                    found.append((time, read(frame.to_ndarray(format="gray")), bool(frame.key_frame)))
                    end = max(end, time + float((frame.duration or 0) * tick))
            by_order = container.format.name == "avi"
            rate = float(video.guessed_rate or video.average_rate or 25)
    except av.error.FFmpegError as error:
        raise Unreadable(f"{error}") from None
    if by_order:
        # AVI tells when packets are stored, and nothing of when they are shown: one after the other.
        stored += [stored[-1] + (i + 1) / rate for i in range(max(0, len(found) - len(stored)))]
        found = [(time, number, key) for time, (_, number, key) in zip(stored, found, strict=False)]
    return found, end


# What is held against it


@dataclass(frozen=True)
class Run:
    """One way to sample a stream."""

    lanes: int
    fps: float
    start: float | None

    def __str__(self) -> str:
        return f"{self.lanes} lanes, {self.fps:g}/s{'' if self.start is None else f', from {self.start:g}'}"


def runs(stream: Stream, truth: Shown) -> list[Run]:
    """All numbers of lanes at all rates, from the beginning, from somewhere, and from close behind a seam."""
    rng = random.Random(stream.seed + 1)
    last = truth.times[-1]
    somewhere = round(rng.uniform(0.05, 0.95) * last, 2)
    seams = [at for at in truth.keys if 0 < at < last] or truth.times[1:-1]
    total = 0.0
    for _, length in stream.edits:
        total += length
        seams += [total] * 3 if total < last else []
    begun = float(stream.parts[0].times[0])
    seams += [float(part.times[0]) - begun for part in stream.parts[1:] if float(part.times[0]) - begun < last] * 3
    behind = rng.choice(seams) + rng.choice([0, 0.001, 0.02, 0.3])
    starts = [None, max(0.01, somewhere), round(min(behind, last), 3)]
    return [Run(*each) for each in itertools.product(LANES, RATES, starts)]


@contextlib.contextmanager
def in_lanes(count: int, decoder: str) -> Iterator[None]:
    """Have kvvideo decode ``count`` groups of pictures at once: it goes by the cores it may use.

    With two, files are sought in as large ones are.
    """
    from kvvideo.video import packets

    before, most = os.sched_getaffinity, packets.READ_BYTES
    packets.READ_BYTES = 0 if count == 2 else most
    os.sched_getaffinity = lambda _: set(range({1: 1, 2: 2, 8: 10}[count]))
    nvdec: Any = None
    if decoder == "nvdec":
        from kvvideo.video import nvdec

        engines, nvdec.ENGINES = nvdec.ENGINES, count
    try:
        yield
    finally:
        os.sched_getaffinity, packets.READ_BYTES = before, most
        if nvdec is not None:
            nvdec.ENGINES = engines


@contextlib.contextmanager
def called_damaged() -> Iterator[list[str]]:
    """Collect what is said of damage: no stream of the corpus has any."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage()) if "damaged" in record.getMessage() else None  # type: ignore[method-assign]
    logger = logging.getLogger("kvvideo.video")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


Sample = tuple[int | None, float]
"""The number that a sampled picture shows, and the time at which it says it appeared."""


def sampled(path: Path, run: Run, decoder: str = "pyav") -> tuple[list[Sample], str]:
    """Return what kvvideo gives, and the error after it, if one comes; one that is only logged counts, too."""
    from kvvideo.video import read_chunks

    got: list[Sample] = []
    with in_lanes(run.lanes, decoder), called_damaged() as said:
        try:
            for chunk in read_chunks(
                str(path), run.fps, CHUNK, run.start, min_pixels=1, max_pixels=24 * 784, decoder=decoder
            ):
                real = round((chunk.end - chunk.start) * run.fps)  # an odd last picture comes twice
                got += [(read(chunk.frames[i]), chunk.times[i]) for i in range(real)]
        except Exception as error:  # of whatever kind: none is right
            return got, f"{type(error).__name__}: {error}".replace(str(path), path.name)
    return got, " ".join(said)


def wrong(truth: Shown, run: Run, got: Sequence[Sample], failure: str) -> str:
    """Return how the samples of ``run`` differ from the truth; empty if they do not."""
    start = run.start or 0.0
    faults = []
    for i, (number, time) in enumerate(got):
        moment = start + i / run.fps
        if not truth.allows(moment, number, time):
            at, right = truth.at(moment)
            faults.append(f"at {moment:.3f} got {number} ({time:.4f}), wanted {right} ({at:.4f})")
    due, most = (
        sum(start + i / run.fps <= end for i in range(max(0, int((end - start) * run.fps)) + 2))
        for end in (truth.times[-1], truth.end)
    )
    told = []
    if faults:
        told.append(f"{len(faults)} of {len(got)} wrong: {'; '.join(faults[:3])}")
    if not due <= len(got) <= most:
        told.append(f"{len(got)} moments instead of {due}")
    if failure:
        told.append(failure)
    return ", ".join(told)


class Corpus:
    """Files of streams in a directory, each made when first asked for."""

    def __init__(self, seed: int, count: int, directory: Path, large: bool = False) -> None:
        self.streams = described(seed, count, large)
        self._directory = directory
        self.truth: Callable[[Stream], Shown | str] = functools.cache(self._truth)

    def path(self, stream: Stream) -> Path:
        return self._directory / f"{stream.name}.{stream.suffix}"

    def _truth(self, stream: Stream) -> Shown | str:
        """Return what ``stream`` shows, or why that cannot be told."""
        try:
            write(stream, self.path(stream))
            return shown(self.path(stream), stream)
        except (Unreadable, av.error.FFmpegError) as error:
            return f"{type(error).__name__}: {error}"

    def faults(self, stream: Stream, decoder: str = "pyav") -> list[str]:
        """Return what is wrong with ``stream``, per run; nothing for one that cannot be judged."""
        truth = self.truth(stream)
        if isinstance(truth, str):
            return []
        faults = []
        alone: dict[tuple[float, float | None], tuple[list[Sample], str]] = {}
        for run in runs(stream, truth):
            got, failure = sampled(self.path(stream), run, decoder)
            if decoder == "decord" and failure and not got:
                continue  # it refuses what it cannot read well, and nobody was shown anything
            fault = wrong(truth, run, got, failure)
            if not fault and (got, failure) != alone.setdefault((run.fps, run.start), (got, failure)):
                fault = "not what one lane gives"
            faults += [f"{run}: {fault}"] if fault else []
        return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--only", default="", help="streams whose name has this in it")
    parser.add_argument("--decoder", default="pyav", help="pyav, or nvdec: then pictures are of a size that GPUs take")
    parser.add_argument("--keep", type=Path, help="where files that fail are put")
    args = parser.parse_args()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    spent = collections.Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kvvideo-streams-") as directory:
        corpus = Corpus(args.seed, args.count, Path(directory), args.decoder == "nvdec")
        for stream in corpus.streams:
            if args.only not in stream.name:
                continue
            began = clock.monotonic()
            truth = corpus.truth(stream)
            made = clock.monotonic()
            faults = corpus.faults(stream, args.decoder)
            spent["making"] += made - began
            spent["reading"] += clock.monotonic() - made
            outcome = "left out" if isinstance(truth, str) else "wrong" if faults else "right"
            for key in (stream.kind, stream.suffix, NAMES[stream.codec], "all"):
                table[key][outcome] += 1
            if isinstance(truth, str):
                print(f"{stream.name}: left out, {truth}")
            elif faults:
                print(f"{stream}\n    " + "\n    ".join(faults), flush=True)
            if args.keep and outcome != "right" and corpus.path(stream).exists():
                args.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(corpus.path(stream), args.keep)
    print(f"\n{'':12}{'right':>8}{'wrong':>8}{'left out':>10}")
    for key, row in table.items():
        print(f"{key:12}{row['right']:8}{row['wrong']:8}{row['left out']:10}")
    print(f"making took {spent['making']:.0f} s, reading {spent['reading']:.0f} s")
    return 1 if table["all"]["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
