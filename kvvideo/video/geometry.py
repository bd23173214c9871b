"""Work out how large a frame is shown, and how large the model wants it: pure arithmetic, in pixels."""

import math

from kvvideo.errors import ConfigError, VideoError

PATCH = 14
"""Side of one patch of Qwen2.5-VL's vision encoder."""
FACTOR = 2 * PATCH
"""Side of one token: patches are merged 2 x 2, so both sides of a frame are multiples of this."""
FRAMES_PER_TOKEN = 2
"""Frames are merged in pairs too (``FRAME_FACTOR`` in qwen-vl-utils)."""
MIN_PIXELS = 128 * FACTOR**2
"""Smallest frame qwen-vl-utils makes by default: 128 tokens."""
MAX_PIXELS = 768 * FACTOR**2
"""Largest frame qwen-vl-utils makes by default: 768 tokens."""
MAX_PICTURE = 2**26
"""Largest picture that is decoded: 8192 x 8192 stored pixels. A few bytes can claim far larger ones."""
LEGIBLE = 8
"""Pixels of height that a letter needs to be read: 7, in the smallest matrix of dots that has all capitals (5 x 7), and
one between two lines. Our choice: what a model really reads was not measured."""
SMALL_LETTER, SMALL_SHARE = 24, 45
"""Height in pixels of small letters on the screen, as in subtitles and slides: so many at 1080 lines and below, and one
part of so many of the picture's height above. Our choice."""
MAX_RATIO = 200
"""Longest frame the model's processor accepts: the ratio of its sides."""


def displayed_size(height: int, width: int, pixel_ratio: float = 1.0) -> tuple[int, int]:
    """Return the ``(height, width)`` with square pixels at which players show stored pixels.

    Args:
        height: in stored pixels.
        width: in stored pixels.
        pixel_ratio: width of a stored pixel over its height (the sample aspect ratio).
    """
    return height, max(1, round(width * pixel_ratio))


def check_picture(height: int, width: int, name: str) -> None:
    """Raise VideoError, naming the video, if its pictures are larger than can be decoded in bounded memory."""
    if height * width > MAX_PICTURE:
        raise VideoError(
            f"{name!r} has pictures of {width}x{height} pixels, and up to {MAX_PICTURE / 1e6:.0f} million are decoded; "
            "scale it down"
        )


def check_pixels(min_pixels: int, max_pixels: int) -> None:
    """Raise ConfigError unless frames of ``min_pixels`` to ``max_pixels`` can exist."""
    if not 0 < min_pixels <= max_pixels or max_pixels < FACTOR**2:
        raise ConfigError(
            f"frames of {min_pixels} to {max_pixels} pixels are not possible; "
            f"min_pixels must be from 1 to max_pixels, and max_pixels at least {FACTOR**2}"
        )


def frame_size(height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the ``(height, width)`` a displayed frame is resized to: the ``smart_resize`` of qwen-vl-utils.

    Both sides become multiples of 28, the area falls within the limits, and the shape stays as close
    as it can, so that the model's own processor has nothing left to resize.

    Raises:
        VideoError: if the frame is too long and thin for the model.
        ConfigError: if the limits contradict each other.
    """
    check_pixels(min_pixels, max_pixels)
    if min(height, width) < 1 or max(height, width) / min(height, width) > MAX_RATIO:
        raise VideoError(
            f"frames of {width}x{height} pixels are too long and thin for the model: "
            f"one side may be up to {MAX_RATIO} times the other"
        )
    # Python's round is half-to-even; qwen-vl-utils uses it too, so the two agree on every size.
    high = max(FACTOR, round(height / FACTOR) * FACTOR)
    wide = max(FACTOR, round(width / FACTOR) * FACTOR)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = math.floor(height / shrink / FACTOR) * FACTOR
        wide = math.floor(width / shrink / FACTOR) * FACTOR
        if min(high, wide) < FACTOR:
            raise VideoError(
                f"frames of {width}x{height} pixels are too long and thin to fit {max_pixels} pixels; "
                "allow more pixels per frame"
            )
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / FACTOR) * FACTOR
        wide = math.ceil(width * grow / FACTOR) * FACTOR
    return high, wide


def legible(height: int, frame_height: int) -> int:
    """Return the height, in pixels of the source, of the smallest letters that can be read in the frames shown.

    Args:
        height: of the picture as displayed, in pixels.
        frame_height: of the frames, in pixels.
    """
    return math.ceil(LEGIBLE * max(1.0, height / frame_height))


def small_letter(height: int) -> int:
    """Return the height in pixels of small letters on the screen in a picture of ``height`` pixels."""
    return max(SMALL_LETTER, height // SMALL_SHARE)


def tokens_to_read(height: int, width: int, most: int) -> int | None:
    """Return the tokens a pair, in stages of 32, at which small letters can be read; None if ``most`` do not do.

    Args:
        height: of the picture as displayed, in pixels.
        width: likewise.
        most: tokens a pair that a step has room for.
    """
    for count in range(32, most + 1, 32):
        frame = frame_size(height, width, min(4, count) * FACTOR**2, count * FACTOR**2)
        if legible(height, frame[0]) <= small_letter(height):
            return count
    return None


def tokens(height: int, width: int, frames: int) -> int:
    """Return the tokens that ``frames`` resized frames (an even number) become in the model."""
    return frames // FRAMES_PER_TOKEN * (height // FACTOR) * (width // FACTOR)


def fitted(shown: tuple[int, int], box: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Return the ``(height, width)`` that keeps a picture's shape in a frame made for pictures of another.

    Args:
        shown: size of the picture as displayed, in pixels.
        box: size, as displayed, of the pictures that fill the frame.
        frame: size of the frame.
    """
    scale = min(box[0] / shown[0], box[1] / shown[1])

    def side(i: int) -> int:
        share = shown[i] * scale / box[i]
        return frame[i] if share > 0.99 else max(1, round(share * frame[i]))  # off by rounding alone: it fills it

    return side(0), side(1)
