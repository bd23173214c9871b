"""Write a stream as a message for a server that speaks OpenAI's API: what a session would show the model."""

import base64
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from kvvideo.prompt import VIDEO, chunk_text, plain
from kvvideo.types import Chunk


def content(chunks: Iterable[Chunk], question: str) -> list[dict[str, Any]]:
    """Return chunks and a question about them as the ``content`` of one user's message.

    The model of ``kvvideo serve`` sees, token for token, what a session shows it, if the chunks were sampled at the
    server's ``--fps``, their frames are no larger than its ``--frame-tokens`` allow, and their words need not be cut.

    Args:
        chunks: consecutive ones, from the first.
        question: what to ask, in words.
    """
    parts: list[dict[str, Any]] = []
    for chunk in chunks:
        parts.append({"type": "text", "text": chunk_text(chunk.start, chunk.words).removesuffix(VIDEO)})
        parts.append({"type": "video_url", "video_url": {"url": _url(chunk)}})
    return [*parts, {"type": "text", "text": f"\n{plain(question)}"}]


def _url(chunk: Chunk) -> str:
    from PIL import Image

    pictures = []
    for frame in chunk.frames:
        buffer = BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    # What vLLM calls a list of pictures; it reads each as what it is, and PNG loses nothing.
    return "data:video/jpeg;base64," + ",".join(pictures)
