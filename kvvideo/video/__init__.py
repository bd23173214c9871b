"""Videos as a stream of chunks: decoded by presentation time, sampled, and sized for the model.

geometry, sampling, plan, selection, bitstream   pure arithmetic
decoder      what a decoder is, and the table of those there are
pyav, decord the decoders, run in
worker       a process of its own, which talks over
wire         a pipe with
reader       VideoReader, the only part most callers need
"""

from kvvideo.video.decoder import DECODERS, read_chunks
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, frame_size, tokens
from kvvideo.video.plan import Plan, VideoInfo, plan
from kvvideo.video.reader import VideoReader, probe

__all__ = [
    "DECODERS",
    "MAX_PIXELS",
    "MIN_PIXELS",
    "Plan",
    "VideoInfo",
    "VideoReader",
    "frame_size",
    "plan",
    "probe",
    "read_chunks",
    "tokens",
]
