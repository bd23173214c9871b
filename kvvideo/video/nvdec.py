"""The default decoder with an NVIDIA GPU's decoding engines, for who asks for it: ``--decoder nvdec``.

It spares the CPU: one of many cores decodes as fast. Pictures stay on the GPU, but for those that are shown.
"""

import logging

import av
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from kvvideo.errors import ConfigError
from kvvideo.video.decoder import Progress
from kvvideo.video.pyav import PyavDecoder

logger = logging.getLogger("kvvideo.video")

EXACT = frozenset({"h264", "hevc", "vp9"})
"""Codecs that say what a picture is to the last bit. Of others, as MPEG-2 and MPEG-4, GPUs make other pictures."""

ENGINES = 6
"""Groups of pictures that are decoded at once. More were no faster on an H100, which has seven engines."""


class NvdecDecoder(PyavDecoder):
    """Decode on the GPU what it decodes exactly, and all else on the CPU.

    Raises:
        ConfigError: if there is no such GPU.
    """

    name = "nvdec"

    def __init__(self, path: str, progress: Progress) -> None:
        gpu = _gpu()
        with PyavDecoder(path, progress) as looked:
            codec, segmented = looked.info.codec, looked.segmented
        if codec not in EXACT:
            logger.warning("%r is %s, which only the CPU decodes exactly; it does", path, codec)
        elif segmented:
            # Frames that stand for those that were cut out take up the few pictures that an engine has.
            logger.warning("%r has an edit list of several parts, which only the CPU decodes; it does", path)
        else:
            self.hwaccel = gpu
        super().__init__(path, progress)

    def _threads(self) -> int:
        return super()._threads() if self.hwaccel is None else ENGINES

    def _decode_with(self, codec: VideoCodecContext) -> None:
        super()._decode_with(codec)
        if self.hwaccel is not None:
            codec.thread_count = 1

    def _peek(self) -> VideoFrame:
        first = super()._peek()
        if self.hwaccel is not None and first.format.name != "cuda":
            logger.warning(
                "the GPU does not decode %r (%s, %d x %d), the CPU does; in a container, NVIDIA_DRIVER_CAPABILITIES "
                "must include video",
                self._path,
                first.format.name,
                first.width,
                first.height,
            )
        return first


def _gpu() -> HWAccel:
    """Return the first NVIDIA GPU that this process sees."""
    try:
        gpu = HWAccel("cuda", allow_software_fallback=True, is_hw_owned=True)
        gpu.create(av.Codec("h264", "r"))
    except TypeError:
        raise ConfigError(
            f"nvdec needs a newer PyAV than {av.__version__}: pip install -U av, or use --decoder pyav"
        ) from None
    except (av.error.FFmpegError, NotImplementedError) as error:
        logger.debug("no GPU to decode with: %r", error)
        raise ConfigError(
            "there is no NVIDIA GPU here that FFmpeg can use, or no memory left on it; use --decoder pyav"
        ) from None
    return gpu
