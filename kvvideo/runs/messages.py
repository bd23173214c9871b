"""A video as qwen-vl-utils describes one: what a message says of it, apart from what it leaves open."""

from collections.abc import Mapping
from typing import Any

from kvvideo.errors import ConfigError

_FIELDS = {
    "fps": ("fps", "chunk_seconds"),
    "video_start": ("start",),
    "video_end": ("end",),
    "min_pixels": ("min_pixels",),
    "max_pixels": ("max_pixels",),
}
"""Fields of a message, and those of a ``Source`` that they decide."""


def reading_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ``Source`` that ``message`` gives, its path among them.

    What it leaves open is for the caller to say: qwen-vl-utils' own defaults do not know the model.

    Raises:
        ConfigError: naming the field of the message that cannot be used, and what is allowed.
    """
    from kvvideo.video.message import source_of

    if "content" in message:
        raise ConfigError("content: give the element of the video alone, as in {'type': 'video', 'video': 'a.mp4'}")
    lowest = {"min_pixels": 1} if message.get("min_pixels") is None else {}
    source = source_of({**message, **lowest})
    given = [name for field, names in _FIELDS.items() if message.get(field) is not None for name in names]
    return {name: getattr(source, name) for name in ("path", *given)}
