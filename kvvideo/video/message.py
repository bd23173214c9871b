"""Read a message in the form of qwen-vl-utils, ``{"type": "video", "video": "film.mp4", "fps": 2.0}``, as a ``Source``.

A field means what it means to ``process_vision_info`` of qwen-vl-utils 0.0.14, and frames get the size that it gives
them. Where it takes every frame of a video, ours are the same. Elsewhere ours are those that were asked for:

- Moments. It takes ``n`` frames evenly by index, from the first to the last. They lie further apart than ``1 / fps``,
  which it tells the model; at variable rate they are not even in time. Here frame ``k`` is the one that is shown at
  ``video_start + k / fps``.
- Odd numbers. It leaves one frame out. Here the last is shown twice.
- Length. It takes 4 to 768 frames: of a long video fewer a second, and smaller ones. Here rate and size stay, for the
  length of a stream is not known; the budget of the cache bounds the memory.
- The end. It takes the frame at ``video_end``. Here that one belongs to the part after it.
- High rates. It takes no frame twice. Here a frame is shown again where ``fps`` is above the rate of the video.

qwen_vl_utils itself is not imported, for that loads torch and torchvision. Its arithmetic of sizes is ``frame_size``,
and the tests hold sizes and frames against the original.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.video.address import local_path
from kvvideo.video.geometry import FRAMES_PER_TOKEN, MAX_PIXELS, MIN_PIXELS
from kvvideo.video.source import Source

logger = logging.getLogger("kvvideo.video")

_FIELDS: dict[str, tuple[str, str, type[float] | type[int]]] = {
    "fps": ("fps", "a number", float),
    "video_start": ("start", "a number of seconds", float),
    "video_end": ("end", "a number of seconds", float),
    "min_pixels": ("min_pixels", "a whole number", int),
    "max_pixels": ("max_pixels", "a whole number", int),
}
"""Fields that are honoured: their names in a ``Source``, and what they hold, in words and as a type."""

_INSTEAD = {
    "nframes": "use fps, which is nframes over the seconds from video_start to video_end",
    "min_frames": "use fps; every frame that it asks for is shown",
    "max_frames": "use fps with video_end; a memory of any length is bounded by the cache's budget",
    "total_pixels": "use max_pixels, for each frame; the memory of all is bounded by the cache's budget",
    "resized_height": "use max_pixels; frames keep their shape",
    "resized_width": "use max_pixels; frames keep their shape",
}
"""Fields that count over the whole video, whose length is not known, or bend its frames; and what to use."""

_APART = 1.05
"""Least ratio of the limits of the area, which qwen-vl-utils keeps by raising its own upper one."""
_CHUNK_SECONDS = 4.0


def source_of(message: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Source:
    """Return the source that a message describes.

    Args:
        message: the element of a video; or a chat message, or a list of them, that holds one. Text beside it is left
            to the caller, as ``process_vision_info`` leaves it.

    Returns:
        The source, in chunks of the length nearest to 4 s that holds an even number of frames.

    Raises:
        ConfigError: naming the field, and what is allowed.
    """
    element = message if isinstance(message, Mapping) and "content" not in message else _video_in(message)
    if element.get("type", "video") != "video":
        raise ConfigError(f"type of a message must be 'video', not {element['type']!r:.100}")
    path = element.get("video")
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"video of a message must be a path or a URL, not {path!r:.100}")
    settings = _settings(element)
    fps = settings.setdefault("fps", 2.0)
    if not 0 < fps <= 1000:
        raise ConfigError(f"fps of a message must be above 0 and at most 1000, not {fps:g}")
    most = max(MAX_PIXELS, int(settings.get("min_pixels", MIN_PIXELS) * _APART))
    if settings.setdefault("max_pixels", most) > most:
        logger.warning(
            "max_pixels of a message, %d, is above what qwen-vl-utils allows: %d", settings["max_pixels"], most
        )
        settings["max_pixels"] = most
    pairs = max(1, round(_CHUNK_SECONDS * fps / FRAMES_PER_TOKEN))
    return Source.from_dict(
        {"path": local_path(os.fsdecode(path)), "chunk_seconds": FRAMES_PER_TOKEN * pairs / fps, **settings}
    )


def _settings(element: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that ``element`` gives, checked, by their names in a ``Source``."""
    settings = {}
    for name, value in element.items():
        if name in ("type", "video") or value is None:
            continue
        if name in _INSTEAD:
            raise ConfigError(f"{name} of a message cannot be honoured; {_INSTEAD[name]}")
        if name not in _FIELDS:
            raise ConfigError(f"a message has no {name!r:.100}; it has type, video, {', '.join(_FIELDS)}")
        field, words, kind = _FIELDS[name]
        if not isinstance(value, int | kind) or isinstance(value, bool) or not abs(value) < 2**53:
            raise ConfigError(f"{name} of a message must be {words}, not {value!r:.100}")
        settings[field] = kind(value)
    return settings


def _video_in(messages: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the one element of a video in the contents of chat messages."""
    chat = [messages] if isinstance(messages, Mapping) else messages
    elements = []
    for message in chat:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, str | list):
            raise ConfigError(f"content of a message must be text or a list of elements, not {content!r:.100}")
        elements += [each for each in content if isinstance(each, Mapping) and _is_visual(each)]
    if len(elements) != 1:
        raise ConfigError(f"messages must hold one video, not {len(elements)} pictures and videos")
    return elements[0]


def _is_visual(element: Mapping[str, Any]) -> bool:
    """Return True for what ``extract_vision_info`` of qwen-vl-utils picks out of a chat."""
    kinds = ("image", "image_url", "video")
    return element.get("type") in kinds or any(kind in element for kind in kinds)
