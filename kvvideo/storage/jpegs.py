"""One chunk as bytes: its frames as JPEGs, one after the other, which other programs play as Motion JPEG.

frames: a JPEG each, in the order of time
facts: JSON: "times", "start", "end" and "fps" of the chunk, "height" and "width" of its frames, and in "sizes" the
    bytes of each JPEG; if anything is said in it, "words" and "said", too
8 bytes: length of the facts, and CRC-32 of all bytes before these, each little-endian
"""

import io
import json
import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from kvvideo.storage import codec
from kvvideo.types import Chunk

BYTES_PER_PIXEL = 0.33
"""Bytes of a JPEG for each pixel: of seven photographs 0.34, at most 0.45; of the same decoded from H.264, 0.31."""

_QUALITY = 90
"""Quality of JPEG: 40 dB PSNR (95: 43 dB in 1.45 times the bytes). Lossless WebP takes 2.6 to 4 times the bytes."""
_MOST_BYTES = 4 << 30
"""Bytes of the frames of a chunk: no decoder gives more, and a few bytes of JPEG can claim far more."""
_TAIL = 8
_TIMES = ("start", "end")
_COUNTS = ("height", "width")


def encode(chunk: Chunk) -> bytes:
    """Return the bytes of a chunk; about 1 ms of a core for a frame of 448 x 448 pixels."""
    frames = [_jpeg(frame) for frame in chunk.frames]
    _, height, width, _ = chunk.frames.shape
    facts = {
        "times": chunk.times,
        "start": chunk.start,
        "end": chunk.end,
        "fps": chunk.fps,
        "height": height,
        "width": width,
        "sizes": [len(frame) for frame in frames],
    }
    if chunk.words:
        facts |= {"words": chunk.words, "said": chunk.said}
    text = json.dumps(facts).encode()
    data = b"".join([*frames, text, len(text).to_bytes(4, "little")])
    return data + zlib.crc32(data[:-4]).to_bytes(4, "little")


def decode(data: bytes) -> Chunk:
    """Return the chunk that ``encode`` made ``data`` of, but for what JPEG loses.

    Raises:
        ValueError: if it made nothing of the kind.
    """
    facts = _facts(data)
    frames = np.empty((len(facts["sizes"]), facts["height"], facts["width"], 3), np.uint8)
    start = 0
    for frame, size in zip(frames, facts["sizes"], strict=True):
        frame[:] = _picture(data[start : start + size], facts)
        start += size
    said = tuple((at, length) for at, length in facts.get("said", ()))
    return Chunk(
        frames, tuple(facts["times"]), facts["start"], facts["end"], facts["fps"], facts.get("words", ""), said
    )


def check(data: bytes) -> None:
    """Check that ``data`` is whole, without decoding frames; errors are as those of ``decode``."""
    _facts(data)


def _facts(data: bytes) -> dict[str, Any]:
    """Return the facts of a chunk, checked."""
    length, crc = (int.from_bytes(data[at : at + 4], "little") for at in (len(data) - _TAIL, len(data) - 4))
    end = len(data) - _TAIL - length
    if len(data) < _TAIL or end < 0 or zlib.crc32(data[:-_TAIL]) != crc:
        raise ValueError("the checksum is wrong")
    facts = codec.loads(data[end:-_TAIL], "its description")
    times, sizes, fps = facts.get("times"), facts.get("sizes"), facts.get("fps")
    if not isinstance(times, list) or not isinstance(sizes, list) or not codec.are_counts(sizes):
        raise ValueError("the frames are not described")
    if len(times) != len(sizes) or len(times) % 2 or sum(sizes) != end or not sizes:
        raise ValueError("the frames are not as many as they should be")
    if not all(map(codec.is_time, [*times, *(facts.get(name) for name in _TIMES)])):
        raise ValueError("the times are none")
    if not isinstance(fps, float | int) or not 0 < fps < math.inf:
        raise ValueError("the fps are none")
    if not all(codec.is_count(facts.get(name)) for name in _COUNTS):
        raise ValueError("the frames have no size")
    if not isinstance(facts.get("words", ""), str) or not _are_said(facts.get("said", [])):
        raise ValueError("the words are none")
    if len(sizes) * facts["height"] * facts["width"] * 3 > _MOST_BYTES:
        raise ValueError("the frames are too large")
    return facts


def _are_said(pairs: object) -> bool:
    """Return True if ``pairs`` are moments and lengths, as ``Chunk.said`` has them."""
    return isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and codec.is_time(pair[0]) and codec.is_count(pair[1])
        for pair in pairs
    )


def _jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    # Colours at full size: text and other thin things are often told apart by colour alone.
    Image.fromarray(frame).save(target, "JPEG", quality=_QUALITY, subsampling=0)
    return target.getvalue()


def _picture(data: bytes, facts: dict[str, Any]) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size != (facts["width"], facts["height"]) or image.mode != "RGB":
                raise ValueError("a frame is of another size")
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("a frame is no JPEG") from error
