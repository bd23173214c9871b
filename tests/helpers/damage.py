"""A corpus of damaged videos, made from a seed: what a stranger, a bad disk or a broken download may hand us.

Each ``KINDS`` entry yields names and bytes; ``corpus`` is all of them. Sound clips come from ``video_clips``; what is
done to them needs no FFmpeg: boxes, elements and packets are taken apart here.
"""

import functools
import io
import itertools
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.helpers.clips import H264, H265, Clip, copy, made

Named = Iterator[tuple[str, bytes]]
Random = np.random.Generator

_SIZE = {"frames": 45, "rate": 15}
_MPEG4 = {"bf": "2", "g": "15", "qscale": "5"}
SOUND = {
    clip.name.removeprefix("sound."): clip
    for clip in [
        Clip("sound.mp4", options={**H264, "g": "15"}, audio=3.0, **_SIZE),
        Clip("sound.mkv", options={**H264, "g": "15"}, **_SIZE),
        Clip("sound.ts", options={**H264, "g": "15"}, **_SIZE),
        Clip("sound.flv", options={**H264, "g": "15", "bf": "0"}, **_SIZE),
        Clip("sound.avi", codec="mpeg4", options=_MPEG4, **_SIZE),
        Clip("sound.webm", codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime", "g": "15"}, **_SIZE),
        Clip("sound.mov", codec="libx265", options={**H265, "x265-params": "log-level=none:keyint=15"}, **_SIZE),
        Clip("sound.mpg", codec="mpeg2video", options=_MPEG4, **{**_SIZE, "rate": 25}),
        Clip("sound.nut", codec="mjpeg", options={"qscale": "9", "strict": "unofficial"}, **_SIZE),
        Clip(
            "sound.fragments.mp4",
            options={**H264, "g": "15"},
            container={"movflags": "frag_keyframe+empty_moov"},
            **_SIZE,
        ),
        Clip(
            "sound.av1.mp4",
            codec="libsvtav1",
            options={"preset": "12", "svtav1-params": "lp=1:keyint=15"},
            **_SIZE,
        ),
    ]
}
"""Sound clips of three seconds, by the ending of their names."""


@functools.cache
def sound(ending: str) -> bytes:
    return made(SOUND[ending]).read_bytes()


@functools.cache
def front() -> bytes:
    """The mp4 with its index in front, so that part of it can be read."""
    whole = made(SOUND["mp4"])
    return copy(whole, whole.with_name("sound.front.mp4"), movflags="faststart").read_bytes()


def _random(kind: str, seed: int) -> Random:
    return np.random.default_rng([seed, zlib.crc32(kind.encode())])


def _some(bases: dict[str, bytes], count: int) -> Iterator[tuple[int, str, bytes]]:
    for number, (ending, data) in zip(range(count), itertools.cycle(bases.items()), strict=False):
        yield number, ending, data


def _bases() -> dict[str, bytes]:
    return {"front.mp4": front(), **{ending: sound(ending) for ending in SOUND}}


# Damage that knows nothing of formats ----------------------------------------------------------------


def flips(rng: Random) -> Named:
    """Single bits, from one in the file to one in a hundred bytes; half of them in the first 2 KiB."""
    for number, ending, data in _some(_bases(), 48):
        wrong = np.frombuffer(data, np.uint8).copy()
        within = len(wrong) if number % 2 else min(2048, len(wrong))
        count = max(1, int(within * rng.choice([0, 1e-4, 1e-3, 1e-2])))
        np.bitwise_xor.at(wrong, rng.integers(0, within, count), 1 << rng.integers(0, 8, count, dtype=np.uint8))
        yield f"{number}.{ending}", wrong.tobytes()


def cuts(rng: Random) -> Named:
    for number, ending, data in _some(_bases(), 24):
        yield f"{number}.{ending}", data[: int(len(data) * rng.random() ** (1 + number % 3))]


def holes(rng: Random) -> Named:
    """A stretch of zeros, of noise, of nothing, or of what is elsewhere in the file."""
    for number, ending, data in _some(_bases(), 48):
        begin, length = int(rng.integers(0, len(data))), int(rng.integers(1, len(data) // 3))
        other = int(rng.integers(0, len(data)))
        filling = [bytes(length), rng.bytes(length), b"", data[other : other + length]][number // len(_bases()) % 4]
        yield f"{number}.{ending}", data[:begin] + filling + data[begin + length :]


# MP4 boxes -------------------------------------------------------------------------------------------

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"dinf", b"udta"}


@dataclass
class Box:
    """A box of an MP4 file; ``size`` overrides the true one."""

    kind: bytes
    content: bytes
    inner: list["Box"] | None = None
    size: int | None = None

    def dump(self) -> bytes:
        content = self.content if self.inner is None else b"".join(box.dump() for box in self.inner)
        size = len(content) + 8 if self.size is None else self.size
        return struct.pack(">I4s", size, self.kind) + content


def boxes(data: bytes) -> list[Box]:
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        found.append(Box(kind, content, boxes(content) if kind in _PARENTS else None))
        at += size
    return found


def _each(found: list[Box]) -> Iterator[tuple[list[Box], int]]:
    """Every box of a tree, as the list it is in and its place there."""
    for place, box in enumerate(found):
        yield found, place
        if box.inner is not None:
            yield from _each(box.inner)


def _find(found: list[Box], path: str) -> Box:
    """The first box at a path such as ``moov/trak``."""
    *above, last = path.encode().split(b"/")
    for kind in above:
        found = next(box for box in found if box.kind == kind).inner or []
    return next(box for box in found if box.kind == last)


def _dump(found: list[Box]) -> bytes:
    return b"".join(box.dump() for box in found)


def wrong_boxes(rng: Random) -> Named:
    """Boxes removed, there twice, in the place of another, called something else, or of a false length."""
    for ending in ("mp4", "fragments.mp4"):
        for number in range(len([*_each(boxes(sound(ending)))])):
            found = boxes(sound(ending))
            within, place = [*_each(found)][number]
            kind, what = within[place].kind.decode("latin-1"), str(rng.choice(["removed", "twice", "false"]))
            if what == "removed":
                del within[place]
            elif what == "twice":
                within.insert(place, within[place])
            else:
                within[place].size = int(rng.choice([0, 1, 7, 8, 9, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
            yield f"{number}.{what}.{kind}.{ending}", _dump(found)
    for number in range(16):
        found = boxes(sound("mp4"))
        every = [*_each(found)]
        (one, i), (other, j) = (every[int(k)] for k in rng.choice(len(every), 2, replace=False))
        if number % 2:
            one[i], other[j] = Box(other[j].kind, other[j].content), Box(one[i].kind, one[i].content)
        else:
            one[i].kind, other[j].kind = other[j].kind, one[i].kind
        yield f"{number}.swapped.mp4", _dump(found)


_STBL = "moov/trak/mdia/minf/stbl/"
_NUMBERS = {
    "time": [
        ("moov/mvhd", 12),
        ("moov/mvhd", 16),
        ("moov/trak/tkhd", 20),
        ("moov/trak/mdia/mdhd", 12),
        ("moov/trak/mdia/mdhd", 16),
        (_STBL + "stts", 8),
        (_STBL + "stts", 12),
        (_STBL + "ctts", 8),
        (_STBL + "ctts", 12),
        (_STBL + "ctts", 20),
    ],
    "size": [
        ("moov/trak/tkhd", 76),
        ("moov/trak/tkhd", 80),
        (_STBL + "stsd", 4),
        (_STBL + "stsd", 8),
        (_STBL + "stsd", 40),
        (_STBL + "stsz", 4),
        (_STBL + "stsz", 8),
        (_STBL + "stsz", 16),
        (_STBL + "stts", 4),
        (_STBL + "ctts", 4),
        (_STBL + "stsc", 4),
        (_STBL + "stsc", 8),
        (_STBL + "stsc", 12),
        (_STBL + "stco", 4),
        (_STBL + "stco", 8),
        (_STBL + "stss", 4),
        (_STBL + "stss", 8),
        ("moov/trak/edts/elst", 4),
    ],
}
"""32-bit numbers in the boxes of an mp4, by what they are about."""


def _with(path: str, at: int, number: int) -> bytes:
    found = boxes(sound("mp4"))
    box = _find(found, path)
    box.content = box.content[:at] + struct.pack(">I", number) + box.content[at + 4 :]
    return _dump(found)


def _numbered(rng: Random, about: str) -> Named:
    for path, at in _NUMBERS[about]:
        for number in (int(rng.choice([0, 1, 1000, 10**6])), int(rng.choice([2**31 - 1, 2**31, 2**32 - 1]))):
            yield f"{path.rpartition('/')[2]}.{at}.{number}.mp4", _with(path, at, number)


def wrong_times(rng: Random) -> Named:
    """Durations, timestamps and timescales: none, and absurd ones."""
    yield from _numbered(rng, "time")
    yield from _elements_with(
        {
            "scale": (b"\x2a\xd7\xb1", [0, 1, 2**40, 2**63]),
            "duration": (b"\x44\x89", [_double(x) for x in (0.0, -1.0, 1e300, float("inf"), float("nan"))]),
            "cluster": (b"\xe7", [2**31, 2**56, 2**63]),
            "span": (b"\x23\xe3\x83", [0, 1, 2**62]),
        }
    )
    for number, name in itertools.product((0, 1, 2**24 - 1), ("first", "some")):
        yield f"{name}.{number}.flv", _flv_times(rng, number, name)
    for number in (0, 1, 2**31 - 1, 2**32 - 1):
        for place in ("avih", "scale", "rate", "length"):
            yield f"{place}.{number}.avi", _avi_with(place, number)


def wrong_sizes(rng: Random) -> Named:
    """Counts, lengths, offsets and sizes of pictures that cannot be."""
    yield from _numbered(rng, "size")
    yield from _elements_with(
        {
            "width": (b"\xb0", [0, 1, 2**31 - 1, 2**63]),
            "height": (b"\xba", [0, 1, 2**31 - 1, 2**63]),
        }
    )
    for ratio in (Fraction(65535), Fraction(1, 65535)):
        thin = replace(SOUND["mkv"], name="pixels.mkv", pixel_ratio=ratio)
        yield f"pixels.{ratio.numerator}.mkv", made(thin).read_bytes()
    for place, number in itertools.product(("width", "height", "bits", "chunk"), (0, 2**31 - 1, 2**32 - 1)):
        yield f"{place}.{number}.avi", _avi_with(place, number)


def wrong_edits(rng: Random) -> Named:
    """Edit lists and matrices of rotation."""
    matrices = [bytes(36), b"\xff" * 36, struct.pack(">9I", *([2**31] * 9)), rng.bytes(36), rng.bytes(36)]
    for number, matrix in enumerate(matrices):
        found = boxes(sound("mp4"))
        box = _find(found, "moov/trak/tkhd")
        box.content = box.content[:40] + matrix + box.content[76:]
        yield f"matrix{number}.mp4", _dump(found)
    edits: dict[str, list[tuple[int, int, int]]] = {
        "none": [],
        "empty": [(2**31 - 1, -1, 1)],
        "late": [(3000, 2**31 - 1, 1)],
        "before": [(3000, -(2**31), 1)],
        "long": [(2**32 - 1, 0, 1)],
        "still": [(3000, 0, 0)],
        "backwards": [(3000, 0, -1)],
        "again": [(1000, 0, 1)] * 50,
        "tiny": [(1, number, 1) for number in range(2000)],
        "many": [(3000, 0, 1)] * 10_000,
    }
    for name, entries in edits.items():
        table = b"".join(struct.pack(">IiI", length, at, rate << 16 & 2**32 - 1) for length, at, rate in entries)
        found = boxes(sound("mp4"))
        _find(found, "moov/trak/edts/elst").content = struct.pack(">II", 0, len(entries)) + table
        yield f"{name}.mp4", _dump(found)


# Matroska elements -----------------------------------------------------------------------------------

_MASTERS = {b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0", b"\x15\x49\xa9\x66", b"\x1f\x43\xb6\x75"}
Element = tuple[bytes, "bytes | list[Element]"]


def _vint(data: bytes, at: int) -> int:
    """Length of the number with a length of its own that begins at ``at``."""
    return 9 - data[at].bit_length() if data[at] else 8


def elements(data: bytes) -> list[Element]:
    found: list[Element] = []
    at = 0
    while at < len(data):
        width = _vint(data, at)
        name, at = data[at : at + width], at + width
        width = _vint(data, at)
        size = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
        at += width
        size = len(data) - at if size == (1 << 7 * width) - 1 else size
        content = data[at : at + size]
        found.append((name, elements(content) if name in _MASTERS else content))
        at += size
    return found


def _written(found: list[Element]) -> bytes:
    parts = []
    for name, content in found:
        inner = content if isinstance(content, bytes) else _written(content)
        parts.append(name + (len(inner) | 1 << 56).to_bytes(8, "big") + inner)
    return b"".join(parts)


def _all(found: list[Element]) -> Iterator[tuple[list[Element], int]]:
    for place, (_, content) in enumerate(found):
        yield found, place
        if isinstance(content, list):
            yield from _all(content)


def _double(value: float) -> bytes:
    return struct.pack(">d", value)


def _elements_with(changes: dict[str, tuple[bytes, list[int | bytes]]]) -> Named:
    for name, (wanted, values) in changes.items():
        for value in values:
            found = elements(sound("mkv"))
            within, place = next((w, p) for w, p in _all(found) if w[p][0] == wanted)
            content = value if isinstance(value, bytes) else value.to_bytes(8, "big")
            within[place] = wanted, content
            yield f"{name}.{content.hex()}.mkv", _written(found)


def wrong_elements(rng: Random) -> Named:
    """Elements of Matroska removed, there twice, in the place of another, or of a false length."""
    for ending in ("mkv", "webm"):
        count = len([*_all(elements(sound(ending)))])
        for number, what in enumerate(["removed", "twice", "swapped", "noise"] * 5):
            found = elements(sound(ending))
            every = [*_all(found)]
            within, place = every[int(rng.integers(0, min(count, 60)))]
            if what == "removed":
                del within[place]
            elif what == "twice":
                within.insert(place, within[place])
            elif what == "swapped":
                other, at = every[int(rng.integers(0, count))]
                within[place], other[at] = other[at], (within[place][0], b"")
            else:
                within[place] = within[place][0], rng.bytes(int(rng.integers(0, 12)))
            yield f"{number}.{what}.{ending}", _written(found)


# Packets of a transport stream, chunks of AVI, tags of FLV -------------------------------------------


def wrong_packets(rng: Random) -> Named:
    """Packets of MPEG-TS lost, there twice, in disorder, of another stream, without their mark."""
    data = sound("ts")
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    for number, what in enumerate(["lost", "twice", "disorder", "other", "unmarked", "first", "reversed"] * 3):
        some = [*packets]
        chosen = rng.choice(len(some), max(1, len(some) // int(rng.choice([5, 20, 100]))), replace=False)
        if what == "lost":
            some = [packet for place, packet in enumerate(some) if place not in {*chosen}]
        elif what == "disorder":
            begin = int(rng.integers(0, len(some) - 30))
            some[begin : begin + 30] = [some[begin + int(k)] for k in rng.permutation(30)]
        elif what == "reversed":
            some.reverse()
        elif what == "first":
            some = some[int(rng.integers(1, 30)) :]
        for place in chosen if what in ("twice", "other", "unmarked") else ():
            packet = some[place]
            if what == "twice":
                some[place] = packet * 2
            elif what == "other":
                some[place] = packet[:1] + rng.bytes(3) + packet[4:]
            else:
                some[place] = rng.bytes(1) + packet[1:]
        yield f"{number}.{what}.ts", b"".join(some)


def _avi_with(place: str, number: int) -> bytes:
    data = bytearray(sound("avi"))
    header, stream, form = data.index(b"avih") + 8, data.index(b"strh") + 8, data.index(b"strf") + 8
    at = {
        "avih": header,
        "scale": stream + 20,
        "rate": stream + 24,
        "length": stream + 32,
        "width": form + 4,
        "height": form + 8,
        "bits": form + 14,
        "chunk": data.index(b"00dc") + 4,
    }[place]
    data[at : at + 4] = struct.pack("<I", number)
    return bytes(data)


def _flv_times(rng: Random, number: int, which: str) -> bytes:
    data = bytearray(sound("flv"))
    at = 9 + 4
    for tag in range(10**6):
        if at + 11 > len(data):
            break
        if tag == 3 if which == "first" else rng.random() < 0.2:
            data[at + 4 : at + 7] = number.to_bytes(3, "big")
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    return bytes(data)


# Bombs -----------------------------------------------------------------------------------------------


class Bits:
    """The bits of H.264 headers, to be read and written again."""

    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def golomb(self) -> tuple[int, int, int]:
        """An Exp-Golomb number: where it begins, where it ends, and what it is."""
        begin = self.at
        zeros = self.bits.index("1", begin) - begin
        self.at = begin + 2 * zeros + 1
        return begin, self.at, int(self.bits[begin + zeros : self.at], 2) - 1

    def replace(self, begin: int, end: int, number: int) -> None:
        digits = f"{number + 1:b}"
        self.bits = self.bits[:begin] + "0" * (len(digits) - 1) + digits + self.bits[end:]
        self.at = begin + 2 * len(digits) - 1

    def dump(self) -> bytes:
        whole = self.bits.rstrip("0").ljust(-(-len(self.bits.rstrip("0")) // 8) * 8, "0")
        return int(whole, 2).to_bytes(len(whole) // 8, "big")


def _h264_of(width: int, height: int) -> bytes:
    """The mp4 with a head that says its pictures are of another size; they hold next to nothing of it."""
    found = boxes(sound("mp4"))
    table = _find(found, _STBL + "stsd")
    at = table.content.index(b"avcC") + 4 + 6
    (length,) = struct.unpack_from(">H", table.content, at)
    bits = Bits(table.content[at + 2 : at + 2 + length])
    bits.bits = bits.bits[:24] + f"{62:08b}" + bits.bits[32:]  # a level that allows it
    bits.at = 32
    bits.golomb()  # id
    bits.golomb()  # chroma format
    bits.golomb(), bits.golomb()  # bit depths
    bits.at += 2
    bits.golomb()  # frame numbers
    if bits.golomb()[2] == 0:
        bits.golomb()
    bits.golomb()  # reference frames
    bits.at += 1
    for side in (width, height):
        begin, end, _ = bits.golomb()
        bits.replace(begin, end, side // 16 - 1)
    head = bits.dump()
    table.content = table.content[:at] + struct.pack(">H", len(head)) + head + table.content[at + 2 + length :]
    return _with_lengths(found, table)


def _with_lengths(found: list[Box], table: Box) -> bytes:
    """With the lengths inside of ``stsd`` set right."""
    content = bytearray(table.content)
    at = content.index(b"avcC") - 4
    (length,) = struct.unpack_from(">H", content, at + 8 + 6)
    count_at = at + 8 + 8 + length
    (second,) = struct.unpack_from(">H", content, count_at + 1)
    after = count_at + 3 + second
    tail = 4 if content[at + 9] in (100, 110, 122, 244) else 0  # the extension that High profiles have
    old = struct.unpack_from(">I", content, at)[0]
    new = after + tail - at
    struct.pack_into(">I", content, at, new)
    struct.pack_into(">I", content, 8, struct.unpack_from(">I", content, 8)[0] + new - old)
    table.content = bytes(content)
    return _dump(found)


def _vp9_of(width: int, height: int) -> bytes:
    found = elements(sound("webm"))
    for within, place in _all(found):
        name, content = within[place]
        if name != b"\xa3" or not isinstance(content, bytes) or content[5:8] != b"\x49\x83\x42":
            continue
        head = int.from_bytes(content[4:16], "big")
        shift = 96 - 36 - 32
        head = head & ~(0xFFFFFFFF << shift) | (width - 1) << shift + 16 | (height - 1) << shift
        within[place] = name, content[:4] + head.to_bytes(12, "big") + content[16:]
    return _written(found)


def _jpegs_of(width: int, height: int) -> bytes:
    data = sound("nut")
    parts = data.split(b"\xff\xc0\x00\x11\x08")
    size = struct.pack(">HH", height, width)
    return parts[0] + b"".join(b"\xff\xc0\x00\x11\x08" + size + part[4:] for part in parts[1:])


def _png(width: int, height: int) -> bytes:
    """A black picture, which zlib makes a thousand times smaller."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    press = zlib.compressobj(1)
    row = bytes(width + 1)
    pixels = b"".join(press.compress(row) for _ in range(height)) + press.flush()
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", pixels) + part(b"IEND", b"")


def _samples_of(picture: bytes, kind: bytes, count: int, span: int, size: int | None = None) -> bytes:
    """An mp4 of ``count`` frames of ``span`` ms, all of which are one ``picture`` in the file."""
    found = boxes(sound("mp4"))
    del _find(found, "moov").inner[2]  # the sound  # type: ignore[index]
    start = len(found[0].dump()) + 8
    found[1:1] = [Box(b"mdat", picture)]
    found = [box for i, box in enumerate(found) if i == 1 or box.kind != b"mdat"]
    track = _find(found, "moov/trak/mdia/minf/stbl")
    entry = bytearray(_find(found, _STBL + "stsd").content[: 8 + 86])
    struct.pack_into(">II4s", entry, 4, 1, 86, kind)
    track.inner = [
        Box(b"stsd", bytes(entry)),
        Box(b"stts", struct.pack(">IIII", 0, 1, count, span)),
        Box(b"stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1)),
        Box(b"stsz", struct.pack(">III", 0, len(picture) if size is None else size, count)),
        Box(b"stco", struct.pack(">II", 0, count) + struct.pack(">I", start) * count),
    ]
    media = _find(found, "moov/trak/mdia/mdhd")
    media.content = media.content[:12] + struct.pack(">II", 1000, min(count * span, 2**32 - 1)) + media.content[20:]
    path = _find(found, "moov/trak").inner or []
    path[:] = [box for box in path if box.kind != b"edts"]
    return _dump(found)


def _fragment_of(count: int, duration: int) -> bytes:
    """A fragment that says it has ``count`` frames, all of a size and a duration told once."""
    found = boxes(sound("fragments.mp4"))
    fragment = _find(found, "moof/traf")
    assert fragment.inner is not None
    fragment.inner = [
        Box(b"tfhd", struct.pack(">IIIII", 0x020038, 1, duration, 1, 0)),
        Box(b"tfdt", struct.pack(">II", 0, 0)),
        Box(b"trun", struct.pack(">II", 0, count)),
    ]
    return _dump(found)


def picture_bombs(rng: Random) -> Named:
    """A few bytes that claim, or are, pictures of up to 67 million pixels and far more."""
    for width, height in ((8192, 8192), (16384, 16384), (65536, 2048), (16, 65536), (65536, 65536)):
        yield f"h264.{width}x{height}.mp4", _h264_of(width, height)
        yield f"vp9.{width}x{height}.webm", _vp9_of(width, height)
    for width, height in ((8000, 8000), (16000, 16000), (65500, 4000), (65535, 65535)):
        yield f"jpeg.{width}x{height}.nut", _jpegs_of(width, height)
    for side in (8000, 16000):
        yield f"png.{side}x{side}.mp4", _samples_of(_png(side, side), b"png ", 40, 66)
    gif = b"GIF89a" + struct.pack("<HH", 16000, 16000) + b"\x80\0\0" + bytes(6)
    frame = b"\x21\xf9\x04\0\x0a\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, 16000, 16000) + b"\0\x02\x02\x4c\x01\0"
    yield "claims.gif", gif + frame * 50 + b"\x3b"


def frame_bombs(rng: Random) -> Named:
    """Small files of hundreds of thousands of frames, that claim billions, or say they last for centuries."""
    jpeg = sound("nut")
    begin = jpeg.index(b"\xff\xd8\xff")
    picture = jpeg[begin : jpeg.index(b"\xff\xd9", begin) + 2]
    yield "frames.mp4", _samples_of(picture, b"jpeg", 200_000, 1)
    yield "at_once.mp4", _samples_of(picture, b"jpeg", 200_000, 0)
    yield "hours.mp4", _samples_of(picture, b"jpeg", 1000, 3_000_000)
    yield "centuries.mp4", _samples_of(picture, b"jpeg", 3, 2**32 - 1)
    yield "one_byte.mp4", _samples_of(picture, b"jpeg", 200_000, 40, size=1)
    for count in (10**6, 10**8, 2**31 - 1):
        found = boxes(_samples_of(picture, b"jpeg", 1, 40))
        for name, content in {
            "stts": struct.pack(">IIII", 0, 1, count, 40),
            "stsc": struct.pack(">IIIII", 0, 1, 1, count, 1),
            "stsz": struct.pack(">III", 0, 1, count),
        }.items():
            _find(found, _STBL + name).content = content
        yield f"claimed.{count}.mp4", _dump(found)
        yield f"fragment.{count}.fragments.mp4", _fragment_of(count, 1)
    yield "fragment.long.fragments.mp4", _fragment_of(100, 2**32 - 1)


# What is no video ------------------------------------------------------------------------------------


def garbage(rng: Random) -> Named:
    yield "empty.mp4", b""
    yield "byte.mp4", b"\0"
    yield "zeros.mp4", bytes(5000)
    yield "ones.mkv", b"\xff" * 5000
    yield "ftyp.mp4", front()[:32]
    yield "ebml.mkv", sound("mkv")[:40]
    yield "sync.ts", (b"\x47" + bytes(187)) * 100
    yield "sync_noise.ts", b"".join(b"\x47" + rng.bytes(187) for _ in range(200))
    yield "riff.avi", b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl"
    yield "flv.flv", b"FLV\1\5\0\0\0\x09\0\0\0\0" + rng.bytes(2000)
    for number, ending in enumerate(("mp4", "mkv", "ts", "avi", "flv", "webm")):
        yield f"noise.{ending}", rng.bytes(10 ** (1 + number % 4))


def other_kinds(rng: Random) -> Named:
    """Files of other kinds, by the name of a video."""
    archive, packed, sound_file = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a.txt", "hello" * 100)
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with wave.open(sound_file, "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
        out.writeframes(bytes(16000))
    local = "/proc/self/environ"
    yield from {
        "zip.mp4": archive.getvalue(),
        "tar.mp4": packed.getvalue(),
        "wave.mp4": sound_file.getvalue(),
        "png.mp4": _png(100, 100),
        "gif.mp4": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "pdf.mp4": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
        "elf.mp4": b"\x7fELF\2\1\1" + rng.bytes(4000),
        "json.mp4": b'{"id": "a1", "video": "x.mp4"}\n' * 20,
        "html.mp4": b"<!doctype html><html><body>404 Not Found</body></html>\n",
        "svg.mp4": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{local}\n#EXT-X-ENDLIST\n".encode(),
        "itself.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nitself.m3u8\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{local}'\n".encode(),
        "sdp.mp4": b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period/></MPD>',
        "subtitles.mp4": b"1\n00:00:01,000 --> 00:00:02,000\nHello\n",
        "script.mp4": b"#!/bin/sh\necho hello\n",
        "metadata.mp4": b";FFMETADATA1\ntitle=x\n",
        "art.mp4": b"\x1b[2J\x1b[31mhello\x1b[0m\n" * 50,
        "matroska.mp4": sound("mkv"),
        "mp4.mkv": sound("mp4"),
        "transport.avi": sound("ts"),
    }.items()


KINDS: dict[str, Callable[[Random], Named]] = {
    "bit flips": flips,
    "cut short": cuts,
    "holes": holes,
    "MP4 boxes removed, doubled, swapped, of false length": wrong_boxes,
    "Matroska elements removed, doubled, swapped, of noise": wrong_elements,
    "MPEG-TS packets lost, doubled, in disorder": wrong_packets,
    "wrong times, durations, timescales": wrong_times,
    "wrong counts, lengths, sizes": wrong_sizes,
    "wrong edit lists and rotations": wrong_edits,
    "bombs of pictures": picture_bombs,
    "bombs of frames": frame_bombs,
    "garbage": garbage,
    "files of other kinds": other_kinds,
}
"""Ways to damage videos."""


@dataclass(frozen=True)
class Damaged:
    """One file of the corpus."""

    kind: str
    path: Path


def corpus(directory: Path, seed: int = 0) -> list[Damaged]:
    """Write all files to ``directory``; those of one seed are the same each time."""
    found = []
    for number, (kind, make) in enumerate(KINDS.items()):
        for name, data in make(_random(kind, seed)):
            path = directory / f"{number:02d}-{name}"
            path.write_bytes(data)
            found.append(Damaged(kind, path))
    assert len({damaged.path for damaged in found}) == len(found)
    return found
