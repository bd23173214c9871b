"""Write a stretch of a video to an mp4 file: its packets as they are where that can be, else encoded anew.

Runs in the ``worker``. Packets are copied from where decoding can begin (``bitstream``) before the stretch; an edit
list hides what comes before it, so that players begin at the very frame, and no picture loses anything. At the end a
few frames more may show, which those before need.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from kvvideo.errors import VideoError
from kvvideo.video.container import CONFIGURED, DEFAULT_FPS, File, Packet, is_segmented
from kvvideo.video.decoder import Decoder, Progress, reason
from kvvideo.video.packets import FilePackets, Frame
from kvvideo.video.sampling import Grid
from kvvideo.video.selection import Coded

COPIED = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
"""Codecs whose packets are copied: those that players expect in mp4."""
SOUNDS = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac"})
"""Codecs of sound that are copied, the same; other sound is left out."""
LEAD_SECONDS = 30.0
"""Most seconds that are hidden before a stretch: our choice. Where decoding begins nowhere nearer, it is encoded."""
MOST_FPS = 60.0
"""Frames per second of what is encoded, at most: our choice."""

Cut = tuple[Any, list[Any]]
"""A stream, and packets of it whose times count from the beginning of the clip."""


def write(decoder: Decoder, grid: Grid, target: str, progress: Progress) -> None:
    """Write the frames shown from the first moment of ``grid`` to its end, with their sound, to the file ``target``.

    Args:
        decoder: of the video, which gave no frame yet.
        grid: the stretch.
        target: replaced if it is there.
        progress: told the time of what is read, in seconds.

    Raises:
        VideoError: if the video shows nothing then, or cannot be written.
    """
    path, start, end = decoder.info.path, grid.start, grid.end or decoder.info.duration or grid.start
    file = File(path, None)
    try:
        copied = _pictures(FilePackets(file, progress), start, end) if _is_copied(decoder) else None
        if copied is not None:
            begin, cut = copied
            try:
                return _mux(target, [cut, *_sound(file, begin, end)])
            except (av.error.FFmpegError, ValueError):
                pass  # mp4 does not take it: encoded anew it does
        _encode(decoder, start, end, target, _sound(file, start, end))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"a clip of {path!r} cannot be written: {reason(error)}") from error
    finally:
        file.close()


def _is_copied(decoder: Decoder) -> bool:
    return decoder.info.timed and decoder.info.codec in COPIED


def _pictures(packets: FilePackets, start: float, end: float) -> tuple[float, Cut] | None:
    """Return the packets of the frames shown from ``start`` to ``end``, and when the first of those is shown.

    None if their times or their place in the file do not allow to copy them.
    """
    packets.head.extend(islice(packets.rest, 1))
    packets.settle()
    if is_segmented(packets.stream):
        return None
    frames: list[Coded[Frame]] = []
    for coded in _placed(packets, start):
        if coded.restarts and coded.time <= start:
            frames.clear()
        frames.append(coded)
        decoded = coded.payload[0].dts
        if decoded is not None and decoded * packets.tick - packets.origin >= end:
            break
    while frames and frames[-1].time >= end:
        frames.pop()
    shown = [coded.time for coded in frames if not coded.hidden and coded.time <= start]
    taken = [packet for coded in frames for packet in coded.payload]
    if not shown or start - frames[0].time > LEAD_SECONDS:
        return None
    if any(packet.pts is None or packet.dts is None or packet.is_discard for packet in taken):
        return None
    begin = max(shown)
    return begin, (packets.stream, _moved(taken, round((begin + packets.origin) / packets.tick)))


def _placed(packets: FilePackets, start: float) -> Iterator[Coded[Frame]]:
    """Yield the frames of a video from a place before ``start``, in seconds."""
    known = (packets.settle()[0] or 0.0) * packets.kind.startswith(CONFIGURED)
    if packets.is_sought(start):
        found = packets.sought(start, 0.0)
        if found is not None:
            return packets.placed(found, start, 0.0, known)
        packets.reopen()
    return packets.placed(packets.all(), start, 0.0, known)


def _sound(file: File, start: float, end: float) -> list[Cut]:
    """Return the packets of the sound from ``start`` to ``end`` seconds; nothing if there is none that mp4 takes."""
    container, _ = file.open()
    stream: Any = container.streams.best("audio")
    if stream is None or stream.codec_context is None or stream.codec_context.codec.canonical_name not in SOUNDS:
        container.close()
        return []
    origin = (container.start_time or 0) / av.time_base
    first, last = (round((time + origin) / stream.time_base) for time in (start, end))
    if start > 0:
        container.seek(first, stream=stream)
    taken = []
    for packet in container.demux(stream):
        if packet.pts is None or packet.size == 0:
            continue
        if packet.pts >= last:
            break
        if packet.pts >= first:
            taken.append(packet)
    return [(stream, _moved(taken, first))] if taken else []


def _moved(packets: list[Any], by: int) -> list[Any]:
    """Return ``packets``, now with times that are ``by`` ticks earlier."""
    for packet in packets:
        packet.pts -= by
        packet.dts = packet.pts if packet.dts is None else packet.dts - by
    return packets


def _mux(target: str, cuts: list[Cut]) -> None:
    """Write packets as they are."""
    with av.open(target, "w", format="mp4", options={"movflags": "+faststart"}) as out:
        for packet in _joined(out, cuts):
            out.mux(packet)


def _joined(out: Any, cuts: list[Cut]) -> Iterator[Packet]:
    """Yield the packets of all ``cuts`` in the order of decoding, for streams like theirs in ``out``."""
    packets = []
    for stream, some in cuts:
        other = out.add_stream_from_template(stream, opaque=True)
        for packet in some:
            packet.stream = other
        packets += [(packet.dts * stream.time_base, packet) for packet in some]
    return (packet for _, packet in sorted(packets, key=lambda timed: timed[0]))


def _encode(decoder: Decoder, start: float, end: float, target: str, sound: list[Cut]) -> None:
    """Write what ``decoder`` shows from ``start`` to ``end`` as H.264, with ``sound`` as it is."""
    info = decoder.info
    rate = Fraction(min(info.fps or DEFAULT_FPS, MOST_FPS)).limit_denominator(1001)
    height, width = info.height - info.height % 2, info.width - info.width % 2
    pictures = decoder.sample(Grid.of(float(rate), 2 / float(rate), start, end), height, width)
    first = next(pictures, None)
    if first is None:
        raise decoder.failure or VideoError(f"{info.path!r} shows nothing to write a clip of")
    with av.open(target, "w", format="mp4", options={"movflags": "+faststart"}) as out:
        stream: Any = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20", "x264-params": "log-level=none"}
        heard = _joined(out, sound)
        for _, picture in chain([first], pictures):
            out.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode(None))
        for packet in heard:
            out.mux(packet)
