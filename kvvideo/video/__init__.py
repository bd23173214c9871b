"""Videos as a stream of chunks: decoded by presentation time, sampled, and sized for the model.

geometry, sampling, plan, selection, bitstream, timeline, lanes   arithmetic that knows no FFmpeg
decoder      what a decoder is, and the table of those there are
container, packets, frames, pictures    FFmpeg opens, reads, decodes and converts
pyav, nvdec, decord    the decoders, run in
worker       a process of its own, which talks over
wire         a pipe with
process      the other end of it, for
reader       VideoReader, the only part most callers need

cues         the words of subtitles: cleaned, and shared out to chunks
subtitles    finding and reading them: files, and through a worker
tracks       those in the video itself

source       the settings of a reader as a value
message      the same from a message in the form of qwen-vl-utils
still        one picture
address      what a name stands for: a file, a pipe, a camera, a URL; all but files are live
live         how live sources are treated, and how their time runs: pure arithmetic
connect, capture, pyav_live    opening, reading and decoding them, in the worker
"""

from kvvideo.video.address import is_live
from kvvideo.video.cues import Subtitles
from kvvideo.video.decoder import DECODERS, read_chunks
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, frame_size, tokens
from kvvideo.video.live import Live, LiveStatus
from kvvideo.video.message import source_of
from kvvideo.video.plan import Plan, VideoInfo, plan
from kvvideo.video.reader import VideoReader, probe
from kvvideo.video.source import Source
from kvvideo.video.still import frame_at

__all__ = [
    "DECODERS",
    "MAX_PIXELS",
    "MIN_PIXELS",
    "Live",
    "LiveStatus",
    "Plan",
    "Source",
    "Subtitles",
    "VideoInfo",
    "VideoReader",
    "frame_at",
    "frame_size",
    "is_live",
    "plan",
    "probe",
    "read_chunks",
    "source_of",
    "tokens",
]
