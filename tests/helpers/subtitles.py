"""Subtitles made on the spot: files of each format, and videos that hold tracks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.subtitles.subtitle import SubtitleSet

from tests.helpers.clips import draw

MS = Fraction(1, 1000)
HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""

Cue = tuple[float, float, str]


def clock(seconds: float, point: str = ",", digits: int = 3) -> str:
    ticks = round(seconds * 10**digits)
    whole, rest = divmod(ticks, 10**digits)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{rest:0{digits}d}"


def srt(cues: Sequence[Cue]) -> str:
    return "".join(
        f"{number}\n{clock(start)} --> {clock(end)}\n{text}\n\n" for number, (start, end, text) in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    return "WEBVTT\n\n" + "".join(f"{clock(start, '.')} --> {clock(end, '.')}\n{text}\n\n" for start, end, text in cues)


def ass(cues: Sequence[Cue]) -> str:
    return HEADER.decode() + "".join(
        f"Dialogue: 0,{clock(start, '.', 2)},{clock(end, '.', 2)},Default,,0,0,0,,{text}\n" for start, end, text in cues
    )


@dataclass(frozen=True)
class Track:
    """A track of subtitles: its codec, what is said, its language, and what it is marked as."""

    codec: str
    cues: Sequence[Cue]
    language: str = "eng"
    marks: Disposition | int = 0


def video(path: Path, *tracks: Track, seconds: float = 10.0, first: float = 0.0, rate: int = 10) -> Path:
    """Write a video with ``tracks``, whose first time stamp is ``first`` seconds; cues count from there."""
    with av.open(str(path), "w") as out:
        pictures: Any = out.add_stream("libx264", rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = 160, 120, "yuv420p"
        pictures.codec_context.time_base = MS
        streams = [_added(out, track) for track in tracks]
        events = sorted((cue, number) for number, track in enumerate(tracks) for cue in track.cues)
        for number in range(round(seconds * rate)):
            while events and events[0][0][0] <= number / rate:
                cue, of = events.pop(0)
                out.mux(_packet(streams[of], cue, first))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw(number, 160, 120)), format="rgb24")
            frame.pts, frame.time_base = round((number / rate + first) * 1000), MS
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
    return path


def _added(out: Any, track: Track) -> Any:
    stream = out.add_stream(track.codec)
    stream.codec_context.subtitle_header = HEADER
    stream.codec_context.time_base = stream.time_base = MS
    stream.metadata["language"] = track.language
    stream.disposition = track.marks
    return stream


def _packet(stream: Any, cue: Cue, first: float) -> Any:
    start, end, text = cue
    length = round((end - start) * 1000)
    found = SubtitleSet.create(f"0,0,Default,,0,0,0,,{text}".encode(), 0, length, pts=round(start * 1000))
    packet = stream.codec_context.encode_subtitle(found)
    packet.stream, packet.time_base, packet.duration = stream, MS, length
    packet.pts = packet.dts = round((start + first) * 1000)
    return packet
