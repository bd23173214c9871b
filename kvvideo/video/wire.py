"""Carry messages from the worker to the reader: JSON heads, each with its length before it and pixels after it.

4 bytes, big-endian: length of the head
head: a JSON object with "kind"; "shape" if pixels follow
pixels: uint8, as many as "shape" says
"""

import json
import math
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Head = dict[str, Any]


def send(stream: BinaryIO, head: Head, pixels: npt.NDArray[np.uint8] | None = None) -> None:
    """Write one message."""
    if pixels is not None:
        head = {**head, "shape": pixels.shape}
    text = json.dumps(head).encode()
    stream.write(len(text).to_bytes(4, "big") + text)
    if pixels is not None:
        stream.write(np.ascontiguousarray(pixels).data.cast("B"))
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Head, npt.NDArray[np.uint8] | None]:
    """Read one message: its head, and ``uint8`` pixels of the shape that it tells, if any.

    Raises:
        EOFError: if the sender is gone, even in the middle of a message.
    """
    head: Head = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, 4), "big")))
    if "shape" not in head:
        return head, None
    # bytearray: the array made from it can be written to, and no copy is made
    data = _exactly(stream, math.prod(head["shape"]))
    return head, np.frombuffer(data, np.uint8).reshape(head["shape"])


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
