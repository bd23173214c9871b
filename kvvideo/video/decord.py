"""The decord decoder, for who asks for it: ``--decoder decord``.

decord 0.6.0 is right on H.264 in ordinary mp4 files, which is all it is given here. Measured elsewhere:
wrong frames, silently, on HEVC, MPEG-TS, AVI and edit lists; none at all from live Matroska; and one
damaged packet loses the chunk. Between chunks it goes on decoding in the background without limit;
seeking to 0 after each stops that, mostly (up to 0.8 GB were seen in ten minutes; PyAV needs 0.1 GB).
"""

import math
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video.bitstream import Access
from kvvideo.video.container import LENIENT
from kvvideo.video.decoder import Decoder, Progress, reason
from kvvideo.video.plan import VideoInfo
from kvvideo.video.pyav import PyavDecoder
from kvvideo.video.sampling import EPSILON, Grid


class DecordDecoder(Decoder):
    """Decode H.264 in mp4 with decord, by the frames' own times."""

    name = "decord"

    def __init__(self, path: str, progress: Progress) -> None:
        self._decord = _load()
        self._progress = progress
        with PyavDecoder(path, progress) as checked:
            self.info = checked.info
        self._times = _times(self.info)

    def close(self) -> None:
        """Do nothing: decord frees a file with the last reference to its reader."""

    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Yield the frame shown at each moment of ``grid``."""
        try:
            reader = self._decord.VideoReader(self.info.path, width=width, height=height)
        except Exception as error:
            self.failure = self._failed(error)
            return
        times = self._times
        if len(reader) != len(times):
            self.failure = self._failed(ValueError("it finds another number of frames"))
            return
        count = grid.count_before(self.info.duration or 0.0)
        count = count if grid.count is None else min(count, grid.count)
        for first in range(0, count, grid.per_chunk):
            batch = [grid.time(i) for i in range(first, min(first + grid.per_chunk, count))]
            self._progress(batch[0])
            index = np.searchsorted(times, np.asarray(batch) + EPSILON, side="right") - 1
            try:
                frames: npt.NDArray[np.uint8] = reader.get_batch(index.tolist()).asnumpy()
                reader.seek(0)
            except Exception as error:
                self.failure = self._failed(error)
                return
            yield from zip(times[index].tolist(), frames, strict=True)

    def _failed(self, error: Exception) -> VideoError:
        return VideoError(
            f"decord failed on {self.info.path!r} ({reason(error)[:200]}); "
            "the default decoder, pyav, also reads damaged files"
        )


def _load() -> Any:
    """Return the module ``decord``, silenced.

    Raises:
        ConfigError: if it is not installed, or if decord2 is in its place.
    """
    try:
        import decord
    except (ImportError, OSError):
        raise ConfigError(
            "decord is not installed: pip install 'decord==0.6.0' (x86-64 only), or use --decoder pyav"
        ) from None
    if not decord.__version__.startswith("0."):
        raise ConfigError(
            f"decord {decord.__version__} is decord2, which gives wrong frames in long videos: "
            "pip uninstall decord2 && pip install 'decord==0.6.0', or use --decoder pyav"
        )
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _times(info: VideoInfo) -> npt.NDArray[np.float64]:
    """Return the times at which frames are shown, in seconds, in order: decord itself tells them with 32 bits only.

    Raises:
        VideoError: naming what decord was measured to get wrong, if the file has it.
    """
    if info.codec != "h264":
        raise _unfit(info, f"{info.codec} video")
    if "mp4" not in info.container.split(","):
        raise _unfit(info, f"{info.container} files")
    if info.duration is None or not info.timed:
        raise _unfit(info, "files that do not say how long they are")
    shown: list[float] = []
    begins: list[bool] = []
    key = -math.inf
    with av.open(f"file:{info.path}", **LENIENT) as container:
        stream = container.streams.best("video")
        if container.start_time or stream.start_time:
            raise _unfit(info, "files that do not begin at 0")
        access = Access(info.codec, stream.codec_context.extradata)
        for packet in container.demux(stream):
            if not packet.size or packet.pts is None:
                continue
            restarts = access.read(bytes(packet), b"" if packet.has_sidedata("new_extradata") else None)
            if packet.is_discard:
                raise _unfit(info, "files with an edit list")
            if access.joins:
                raise _unfit(info, "files whose headers change on the way")
            key = packet.pts if restarts else key
            if packet.pts < key:
                raise _unfit(info, "open groups of pictures")
            shown.append(float(packet.pts * stream.time_base))
            begins.append(restarts)
        entries = list(stream.index_entries)
        if len({entry.pos for entry in entries}) != len(shown):
            raise _unfit(info, "files with an edit list")
        if any(entry.is_keyframe and not begin for entry, begin in zip(entries, begins, strict=True)):
            raise _unfit(info, "files that call frames keyframes which are none")
    return np.sort(np.asarray(shown, np.float64))


def _unfit(info: VideoInfo, what: str) -> VideoError:
    return VideoError(f"decord reads {what} wrongly or not at all; read {info.path!r} with the default decoder, pyav")
