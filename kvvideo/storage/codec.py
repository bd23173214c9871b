"""One memory as bytes: a safetensors file, of which nothing can be run.

It is written and read here rather than by the library, because it streams: neither way holds a copy of the tensors,
and the checksum is that of the bytes as they go by.

8 bytes, little-endian: length of the head
head: JSON: dtype, shape and place of each tensor; and in ``__metadata__``, under "kvvideo", a text which is
    JSON again: "format", "version", and the fields of ``Memory`` but its tensors
tensors: one after the other; the last, "crc32", is the CRC-32 of all bytes before it, little-endian
"""

import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from kvvideo import times
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.session.memory import INDEX, Memory

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "kvvideo memory"
VERSION = 2
"""Version of a memory with an index: what reads only 1, that of one without, takes its tensors for damage."""

_KEY = "kvvideo"
_CRC = "crc32"
_CHUNK = 1 << 20
_LONGEST_HEAD = 16 << 20
# Widest first, for so each tensor begins at a multiple of its item's size.
_DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_TEXTS = ("model", "fingerprint", "opening")
_COUNTS = ("position", "live", "evicted", "compactions", "chunks", "frames")
_OBJECTS = ("cache", "source")
_STREAM = re.compile(r"stream\.(0|[1-9]\d{0,5})\.[^\W\d]\w*", re.ASCII)

Facts = dict[str, Any]


class _Place(NamedTuple):
    """One tensor of the file, in the order they lie in."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype][1]


def encode(memory: Memory) -> bytes:
    """Return the bytes that ``write`` writes."""
    stream = io.BytesIO()
    write(memory, stream)
    return stream.getvalue()


def decode(data: bytes, name: str) -> Memory:
    """Return the memory that ``encode`` made ``data`` of; errors are as those of ``read``."""
    return read(io.BytesIO(data), len(data), name)


def write(memory: Memory, stream: IO[bytes]) -> None:
    """Write a memory without holding a copy of its tensors, which must be in host memory.

    Raises:
        ConfigError: if it is not one that ``read`` would accept.
    """
    facts: Facts = {name: getattr(memory, name) for name in (*_TEXTS, *_COUNTS, "end", "source")}
    facts["cache"] = memory.cache.as_dict()
    try:
        places = _places_of(memory.tensors)
        _check_facts(facts)
        _check_places(facts, places)
        _check_values(memory.tensors)
        head = _head_of(facts, places)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"this memory cannot be saved: {one_line(error)}") from error
    summed = _Summed(stream)
    summed.write(len(head).to_bytes(8, "little") + head)
    for place in places:
        tensor = memory.tensors[place.name]
        # One layer after the other, for a tensor that is not contiguous is copied to be.
        for part in [tensor] if tensor.is_contiguous() else tensor.unbind():
            summed.write(_bytes_of(part.contiguous()))
    stream.write(summed.crc.to_bytes(4, "little"))


def read(stream: IO[bytes], size: int, name: str) -> Memory:
    """Read a memory; its tensors own their memory.

    Args:
        stream: stands at its first byte.
        size: of the memory, in bytes.
        name: what errors call it.

    Raises:
        ConfigError: in one line, if the bytes are anything else than a sound memory this version knows.
    """
    import torch

    with _naming(name):
        summed = _Summed(stream)
        facts, places = _read_head(summed, size, name)
        tensors = {}
        for place in places:
            try:
                tensor = torch.empty(place.shape, dtype=getattr(torch, _DTYPES[place.dtype][0]))
            except (RuntimeError, MemoryError) as error:
                raise ConfigError(f"{name!r} does not fit in memory; {place.bytes} bytes are needed") from error
            summed.read_into(_bytes_of(tensor))
            tensors[place.name] = tensor
        _check_crc(summed)
        _check_values(tensors)
        cache = _cache(facts["cache"], name)
    return Memory(**{**facts, "cache": cache, "end": float(facts["end"]), "tensors": tensors})


def end(stream: IO[bytes], size: int, name: str) -> float:
    """Return only the ``end`` of the memory there, in seconds: the head is checked, the tensors are not looked at."""
    with _naming(name):
        facts, _ = _read_head(_Summed(stream), size, name)
        return float(facts["end"])


def check(stream: IO[bytes], size: int, name: str) -> None:
    """Read the memory there to its last byte, holding next to nothing; errors are as those of ``read``."""
    with _naming(name):
        summed = _Summed(stream)
        _, places = _read_head(summed, size, name)
        for place in places:
            for start in range(0, place.bytes, _CHUNK):
                summed.read(min(_CHUNK, place.bytes - start))
        _check_crc(summed)


def check_version(facts: Facts, name: str, newest: int = VERSION) -> None:
    """Raise ConfigError unless ``facts`` has a "format", and a "version" up to ``newest``, which this kvvideo reads."""
    version = facts.get("version")
    if facts.get("format") != FORMAT or not is_count(version) or not version:
        raise ConfigError(f"{name!r} is not a kvvideo memory; make one with 'kvvideo ingest'")
    if version > newest:
        raise ConfigError(
            f"{name!r} was written by a newer kvvideo (format {version}, this one reads up to {newest}); update kvvideo"
        )


def is_time(value: object) -> bool:
    """Return True if ``value`` can be the end of a memory."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and times.is_time(value)


def is_count(value: object) -> bool:
    """Return True if ``value`` is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def are_counts(values: object) -> bool:
    """Return True if ``values`` is a list of such numbers."""
    return isinstance(values, list) and all(map(is_count, values))


def loads(text: str | bytes, what: str) -> Facts:
    """Return the JSON object that ``text`` is.

    Raises:
        ValueError: if it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def one_line(error: Exception) -> str:
    """Return the words of an error, fit to be part of a message whatever a file had in it."""
    text = "".join(c if c.isprintable() else "?" for c in str(error))
    return text if len(text) <= 300 else text[:299] + "…"


class _Summed:
    """A stream, and the CRC-32 of what went through."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.crc = 0

    def write(self, data: bytes | memoryview) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self._stream.write(data)

    def read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise ValueError("it ends too early")
        self.crc = zlib.crc32(data, self.crc)
        return data

    def read_into(self, view: memoryview) -> None:
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            part[:] = self.read(len(part))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"{name!r} is cut short or damaged ({one_line(error)}); make it again with 'kvvideo ingest'"
        ) from error


def _bytes_of(tensor: "Tensor") -> memoryview:
    """Return the memory of a contiguous tensor."""
    import torch

    return tensor.detach().flatten().view(torch.uint8).numpy().data


def _places_of(tensors: "dict[str, Tensor]") -> list[_Place]:
    names = {torch_name: name for name, (torch_name, _) in _DTYPES.items()}
    places = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names:
            raise ValueError(f"tensor {name!r} is {dtype}")
        places.append(_Place(name, names[dtype], tuple(tensor.shape)))
    return sorted(places, key=lambda place: (-_DTYPES[place.dtype][1], place.name))


def _head_of(facts: Facts, places: list[_Place]) -> bytes:
    version = VERSION if any(place.name in INDEX for place in places) else 1
    text = json.dumps({"format": FORMAT, "version": version, **facts}, allow_nan=False)
    head: dict[str, Any] = {"__metadata__": {_KEY: text}}
    start = 0
    for place in [*places, _Place(_CRC, "U8", (4,))]:
        head[place.name] = {
            "dtype": place.dtype,
            "shape": place.shape,
            "data_offsets": [start, start + place.bytes],
        }
        start += place.bytes
    data = json.dumps(head).encode()
    if len(data) > _LONGEST_HEAD:
        raise ValueError("its texts are too long")
    return data + b" " * (-len(data) % 8)


def _read_head(summed: _Summed, size: int, name: str) -> tuple[Facts, list[_Place]]:
    """Return all but the tensors, checked, and the tensors that follow, without the CRC."""
    length = int.from_bytes(summed.read(8), "little")
    if length > min(size - 8, _LONGEST_HEAD):
        raise ValueError("its head is longer than it is")
    head = loads(summed.read(length), "its head")
    metadata = head.pop("__metadata__", None)
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{name!r} is not a kvvideo memory; make one with 'kvvideo ingest'")
    facts = loads(text, "its description")
    check_version(facts, name)
    del facts["format"], facts["version"]
    _check_facts(facts)
    places = _places_in(head, size - 8 - length)
    _check_places(facts, places)
    return facts, places


def _places_in(head: Facts, size: int) -> list[_Place]:
    """Return the tensors in the order they lie in: without gaps, all of ``size`` bytes, and with the CRC last."""
    found = []
    for name, entry in head.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} is not described")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} is of dtype {dtype!r}")
        if not are_counts(shape) or len(shape) > 8 or math.prod(max(n, 1) for n in shape) >= 2**60:
            raise ValueError(f"tensor {name!r} has no possible shape")
        if not are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"tensor {name!r} has no place")
        found.append((offsets, _Place(name, dtype, tuple(shape))))
    found.sort(key=lambda entry: entry[0])
    start = 0
    for offsets, place in found:
        if offsets != [start, start + place.bytes]:
            raise ValueError(f"tensor {place.name!r} is not where it should be")
        start += place.bytes
    if start != size:
        raise ValueError(f"{size} bytes of tensors instead of {start}")
    places = [place for _, place in found]
    if not places or places.pop() != (_CRC, "U8", (4,)):
        raise ValueError("no checksum")
    return places


def _check_facts(facts: Facts) -> None:
    expected = (*_TEXTS, *_COUNTS, *_OBJECTS, "end")
    for name in expected:
        if name not in facts:
            raise ValueError(f"no {name!r}")
    for name, value in facts.items():
        if name not in expected:
            raise ValueError(f"unknown {name!r}")
        if name in _TEXTS and not isinstance(value, str):
            raise ValueError(f"{name} is not a text")
        if name in _COUNTS and not is_count(value):
            raise ValueError(f"{name} is not a whole number of at least 0")
        if name in _OBJECTS and not isinstance(value, dict):
            raise ValueError(f"{name} is not a JSON object")
    if not is_time(facts["end"]):
        raise ValueError("end is not a time in seconds")


def _check_places(facts: Facts, places: list[_Place]) -> None:
    """Check that the tensors are those of a memory, and agree with each other and with ``facts``."""
    by_name = {place.name: place for place in places}
    for name, dtypes in (("keys", "BF16 F16 F32"), ("values", "BF16 F16 F32"), ("state", "I32"), ("log", "F64")):
        if name not in by_name:
            raise ValueError(f"no tensor {name!r}")
        if by_name[name].dtype not in dtypes.split():
            raise ValueError(f"tensor {name!r} is of dtype {by_name[name].dtype!r}")
    keys, values, state, log = (by_name.pop(name) for name in ("keys", "values", "state", "log"))
    if len(keys.shape) != 4 or keys.shape[2] != facts["live"]:
        raise ValueError(f"keys are {list(keys.shape)} for {facts['live']} tokens")
    if values[1:] != keys[1:]:
        raise ValueError(
            f"values are {values.dtype} {list(values.shape)} where keys are {keys.dtype} {list(keys.shape)}"
        )
    layers, kv_heads, live, _ = keys.shape
    if len(state.shape) != 4 or (state.shape[0], *state.shape[2:]) != (layers, kv_heads, live):
        raise ValueError(f"state is {list(state.shape)} where keys are {list(keys.shape)}")
    # Remembered dialogues have rows too.
    if len(log.shape) != 2 or log.shape[0] < facts["chunks"] or log.shape[1] != 4:
        raise ValueError(f"log is {list(log.shape)} for {facts['chunks']} chunks")
    _check_index(by_name.pop("index", None), by_name.pop("index_spans", None), keys)
    for name in by_name:
        match = _STREAM.fullmatch(name)
        if match is None or int(match[1]) >= layers:
            raise ValueError(f"unknown tensor {name!r}")


def _check_index(vectors: _Place | None, spans: _Place | None, keys: _Place) -> None:
    """Check the vectors that chunks are found by, which a memory of an older version has not."""
    if vectors is None and spans is None:
        return
    if (
        vectors is None
        or vectors.dtype != keys.dtype
        or vectors.shape[1:] != (keys.shape[0], keys.shape[1], keys.shape[3])
    ):
        raise ValueError("its index is of another shape or dtype than its keys")
    if spans is None or spans.dtype != "F64" or spans.shape != (vectors.shape[0], 3) or not vectors.shape[0]:
        raise ValueError("its index has no times, or other ones")


def _check_values(tensors: "dict[str, Tensor]") -> None:
    """Check the numbers that are times or counts."""
    log, spans = tensors["log"], tensors.get("index_spans")
    # First positions may be negative, where positions were counted anew.
    if not log.isfinite().all() or (log[:, 1] < 0).any():
        raise ValueError("log has numbers that cannot be")
    if spans is not None and not (spans.isfinite().all() and (spans[:, 2] >= 1).all()):
        raise ValueError("its index has times or counts that cannot be")


def _check_crc(summed: _Summed) -> None:
    expected = summed.crc
    if int.from_bytes(summed.read(4), "little") != expected:
        raise ValueError("its checksum is wrong")


def _cache(settings: Facts, name: str) -> CacheConfig:
    try:
        return CacheConfig.from_dict(settings)
    except (ConfigError, TypeError, OverflowError) as error:
        raise ConfigError(f"{name!r} has cache settings that this kvvideo cannot use: {one_line(error)}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
