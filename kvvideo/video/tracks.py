"""Read the subtitles that a file holds as a track of text, in the worker."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import av
from av.container import InputContainer
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream

from kvvideo.video.container import File
from kvvideo.video.cues import Caption, Subtitles
from kvvideo.video.decoder import Progress

if TYPE_CHECKING:
    from av.stream import Stream

    Packet = av.Packet[Stream]
else:
    Packet = av.Packet

logger = logging.getLogger("kvvideo.video")


def read(path: str, preferred: Callable[[str], bool], progress: Progress) -> Subtitles | None:
    """Return the subtitles in the file at ``path``; None without any that are text.

    Of several tracks it takes no forced one, which translates signs alone, if there is another; then the one that
    is marked as the default; then one in a language that is ``preferred``; then the first.

    Args:
        path: a video.
        preferred: returns True for the code of a language that the person reads.
        progress: told the time of what is read, in seconds.

    Raises:
        VideoError: if the file cannot be read.
    """
    file = File(path, None)
    try:
        container, _ = file.open()
        try:
            streams = [stream for stream in container.streams.subtitles if _is_text(stream)]
            if not streams:
                return None
            stream = min(streams, key=lambda one: _order(one, preferred))
            details = ", ".join(filter(None, (stream.language, stream.codec_context.name)))
            return Subtitles.of(f"{path}, track {stream.index} ({details})", _captions(container, stream, progress))
        finally:
            container.close()
    finally:
        file.close()


def _is_text(stream: SubtitleStream) -> bool:
    """Return True for a track of text that can be decoded, not of pictures."""
    context = stream.codec_context
    return context is not None and context.codec.text_sub


def _order(stream: SubtitleStream, preferred: Callable[[str], bool]) -> tuple[bool, bool, bool, int]:
    marks, language = stream.disposition, stream.language or ""
    return bool(marks & Disposition.forced), not marks & Disposition.default, not preferred(language), stream.index


def _captions(container: InputContainer, stream: SubtitleStream, progress: Progress) -> Iterator[Caption]:
    """Yield the captions of a track, by the clock that pictures are shown by."""
    origin = (container.start_time or 0) / av.time_base
    assert stream.time_base is not None
    for packet in _packets(container, stream, progress):
        if packet.pts is None:
            continue
        start = round(float(packet.pts * stream.time_base) - origin, 6)
        try:
            subtitles = stream.decode2(packet)
        except av.error.FFmpegError as error:
            logger.debug("a caption at %.3f s cannot be decoded: %s", start, error)
            continue
        if subtitles is None:
            continue
        shown = float((packet.duration or 0) * stream.time_base) or subtitles.end_display_time / 1000
        for one in subtitles:
            # The text is the last of nine fields.
            if isinstance(text := getattr(one, "ass", None), bytes):
                yield Caption(start, start + shown, text.decode(errors="replace").split(",", 8)[-1])


def _packets(container: InputContainer, stream: SubtitleStream, progress: Progress) -> Iterator[Packet]:
    """Yield the packets of a track, as far as the file can be read."""
    # What is discarded an mp4 does not even read; other files have no index, and their packets show that it goes on.
    if container.format.name.startswith("mov"):
        with suppress(ImportError):  # PyAV 17 reads all
            from av.stream import Discard

            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                progress(float(packet.pts * packet.time_base))
            if packet.stream_index == stream.index and packet.size:
                yield packet
    except av.error.FFmpegError as error:
        logger.debug("subtitles are read no further: %s", error)
