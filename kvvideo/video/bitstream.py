"""Find where decoding can begin, from what the bitstream itself says: containers call too much a keyframe.

Decoding can begin at a packet if its picture needs no other, and if a decoder knows there all parameter sets that a
decoder knows which has read every packet before it. The first stands in the headers of the picture. For the second,
``Access`` follows the parameter sets through the stream: those of the container, and those between the pictures.

Sources: H.264 (ITU-T H.264, 7.3.1 to 7.3.3, D.2.8), HEVC (ITU-T H.265, 7.3.1, 7.3.2, 7.4.2.2), MPEG-2 (ITU-T H.262,
6.2.2, 6.2.3), MPEG-4 (ISO/IEC 14496-2, 6.2.3, 6.2.5), VP8 (RFC 6386, 9.1), VP9 and AV1 (bitstream specifications of the
Alliance for Open Media, 6.2 and 5.3 to 5.9), JPEG (ITU-T T.81, B.1.1), FFV1 (RFC 9043, 3.8.1, 4.4), ProRes (SMPTE RDD
36, 5.1).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Sets = dict[tuple[int, int], bytes]
"""Parameter sets by kind and number."""


@dataclass(slots=True)
class Seen:
    """Describe one packet.

    Attributes:
        key: its first picture needs no other, nor does any that is shown after it.
        sets: parameter sets in it.
        alone: it needs no parameter sets but its own, in a codec that repeats them with each such picture.
        lost: no picture comes of it: it holds none, or one that needs what is not there (HEVC: RASL after a splice).
        joint: the pictures before it and not shown yet are to be thrown away.
        tells: it says truly whether others refer to its picture.
    """

    key: bool = False
    sets: Sets = field(default_factory=dict)
    alone: bool = False
    lost: bool = False
    joint: bool = False
    tells: bool = True


class Access:
    """Follow a stream in its order, and tell where decoding can begin.

    Args:
        codec: FFmpeg's name of the codec. For one that is not known here decoding begins nowhere but at the
            beginning: slower, and right.
        extradata: the codec's configuration as the container gives it.

    Attributes:
        steady: no parameter set was seen that differs from the container's.
        joins: another stream may begin at the packet read last: decoders may lose pictures that they still hold.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._extradata = extradata or b""
        self._reader: _Reader | None = _READERS[codec](self._extradata) if codec in _READERS else None
        self._known: Sets = dict(self._reader.configured()) if self._reader else {}
        self._replaced = False  # the container gave another configuration, which decoders of its first do not know
        self.steady = True
        self.joins = False
        self.seen = Seen()

    def read(self, packet: bytes, extradata: bytes | None = None) -> bool:
        """Return True if decoding can begin at ``packet`` as well as at the packet before the first.

        Args:
            packet: the next one.
            extradata: the configuration that the container gives with it, if it does.
        """
        self.joins = extradata is not None and extradata != self._extradata
        if self.joins:
            self._replaced, self.steady = True, False
        if self._reader is None:
            return False
        seen = self.seen = self._reader.read(packet)
        if any(self._known.get(name) != data for name, data in seen.sets.items()):
            self._known.update(seen.sets)
            self.joins = True
            self.steady = self.steady and seen.alone
        self.joins = self.joins or seen.joint
        return seen.key and not self.joins and not self._replaced and (self.steady or self.complete)

    @property
    def complete(self) -> bool:
        """True if the packet read last holds all parameter sets that are known: decoders need no others."""
        if self._replaced or not self.seen.key:
            return False
        return self.seen.alone or (bool(self.seen.sets) and self.seen.sets.keys() >= self._known.keys())


class _Reader:
    """Read the packets of one codec; the extradata is the container's configuration."""

    def __init__(self, extradata: bytes) -> None:
        self.extradata = extradata

    def configured(self) -> Sets:
        """Return the parameter sets that the container gives."""
        return {}

    def read(self, packet: bytes) -> Seen:
        """Describe ``packet``."""
        return Seen(key=self.is_key(packet), alone=True)

    def is_key(self, packet: bytes) -> bool:
        """Return True if the picture in ``packet`` needs no other; here all that hold one do not."""
        return bool(packet)


class _Bits:
    """Read numbers of single bits; past the end all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb number."""
        zeros = 0
        while self._left > 0 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _head(unit: bytes, size: int = 64) -> bytes:
    """Return the first bytes of a unit, without the bytes that keep start codes from standing in it."""
    return unit[:size].replace(b"\0\0\3", b"\0\0")


def _started(data: bytes) -> Iterator[bytes]:
    """Yield the units of ``data`` that begin with start codes, without those."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        after = data.find(b"\0\0\1", at + 3)
        unit = data[at + 3 : after if after >= 0 else len(data)]
        if unit:
            yield unit
        at = after


def _prefixed(data: bytes, prefix: int) -> Iterator[bytes]:
    """Yield the units of ``data`` with their lengths before them, in ``prefix`` bytes each."""
    at = 0
    while at + prefix < len(data):
        length = int.from_bytes(data[at : at + prefix], "big")
        at += prefix
        if length:
            yield data[at : at + length]
        at += length


class _Units(_Reader, ABC):
    """Read packets of units, with start codes (MPEG-TS) or lengths of ``prefix`` bytes (MP4, Matroska) before them."""

    prefix = 0

    def configured(self) -> Sets:
        sets: Sets = {}
        for unit in self.listed() if self.prefix else _started(self.extradata):
            self.note(unit, sets)
        return sets

    def units(self, packet: bytes) -> Iterator[bytes]:
        """Yield the units of ``packet`` that are not empty."""
        return _prefixed(packet, self.prefix) if self.prefix else _started(packet)

    @abstractmethod
    def listed(self) -> Iterator[bytes]:
        """Yield the parameter sets that the container lists."""

    @abstractmethod
    def note(self, unit: bytes, sets: Sets) -> None:
        """Put ``unit`` among ``sets`` if it is one."""


class _H264(_Units):
    IDR, SEI, SPS, PPS, EXTENSION, SUBSET = 5, 6, 7, 8, 13, 15
    RECOVERY_POINT = 6
    NO_PICTURE = frozenset(range(SEI, EXTENSION + 1))

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self.prefix = (extradata[4] & 3) + 1 if extradata[:1] == b"\1" and len(extradata) >= 5 else 0

    def listed(self) -> Iterator[bytes]:
        at = 5
        for mask in (31, 255):  # sequence parameter sets, then picture parameter sets
            count = self.extradata[at] & mask if at < len(self.extradata) else 0
            at += 1
            for _ in range(count):
                length = int.from_bytes(self.extradata[at : at + 2], "big")
                yield self.extradata[at + 2 : at + 2 + length]
                at += 2 + length

    def read(self, packet: bytes) -> Seen:
        seen = Seen()
        kinds = set()
        for unit in self.units(packet):
            kind = unit[0] & 31
            kinds.add(kind)
            if kind == self.IDR or (kind == self.SEI and _recovers_at_once(unit[1:])):
                seen.key = True
            self.note(unit, seen.sets)
        seen.lost = bool(kinds) and kinds <= self.NO_PICTURE
        return seen

    def note(self, unit: bytes, sets: Sets) -> None:
        kind = unit[0] & 31 if unit else 0
        if kind in (self.SPS, self.SUBSET):
            sets[kind, _Bits(_head(unit)[4:]).golomb()] = unit.rstrip(b"\0")
        elif kind in (self.PPS, self.EXTENSION):
            sets[kind, _Bits(_head(unit)[1:]).golomb()] = unit.rstrip(b"\0")


def _recovers_at_once(sei: bytes) -> bool:
    """Return True if supplemental information holds a recovery point with a frame count of 0."""
    sei = sei.replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(sei):
        numbers = []
        for _ in ("payload type", "payload size"):
            number = 0
            while at < len(sei) and sei[at] == 255:
                number, at = number + 255, at + 1
            number, at = number + (sei[at] if at < len(sei) else 0), at + 1
            numbers.append(number)
        kind, size = numbers
        if kind == _H264.RECOVERY_POINT and at < len(sei):
            return bool(sei[at] & 0x80)  # Exp-Golomb: a leading 1 bit is the value 0
        at += size
    return False


class _Hevc(_Units):
    RASL, BLA, IDR, CRA, LAST_ACCESS = (8, 9), (16, 17, 18), (19, 20), 21, 23
    VPS, SPS, PPS, ENDS = 32, 33, 34, (36, 37)
    NO_PICTURE = frozenset(range(VPS, 41))

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        configured = len(extradata) >= 23 and (extradata[0] or extradata[1] or extradata[2] > 1)
        self.prefix = (extradata[21] & 3) + 1 if configured else 0
        self._ended, self._begun = True, False
        self._layered = False  # True if pictures that others of their layer do not refer to may be referred to
        self._spliced = False  # True if pictures before the last access point are not there for those after it

    def listed(self) -> Iterator[bytes]:
        at = 23
        for _ in range(self.extradata[22]):
            count = int.from_bytes(self.extradata[at + 1 : at + 3], "big")
            at += 3
            for _ in range(count):
                length = int.from_bytes(self.extradata[at : at + 2], "big")
                yield self.extradata[at + 2 : at + 2 + length]
                at += 2 + length
                if at > len(self.extradata):
                    return

    def read(self, packet: bytes) -> Seen:
        seen = Seen()
        first = True
        kinds = set()
        for unit in self.units(packet):
            if len(unit) < 2 or unit[0] & 1 or unit[1] >> 3:  # of another layer
                continue
            kind = unit[0] >> 1 & 63
            kinds.add(kind)
            if kind <= self.LAST_ACCESS and first:
                first = False
                seen.key = kind >= self.BLA[0]
                seen.lost = kind in self.RASL and self._spliced
                if seen.key:
                    joins = kind == self.CRA and self._ended
                    self._spliced = kind in self.BLA or joins
                    seen.joint = (joins and self._begun) or (kind != self.CRA and bool(unit[2:] and unit[2] & 0x40))
                self._ended, self._begun = False, True
            self._ended = self._ended or kind in self.ENDS
            self.note(unit, seen.sets)
        seen.lost = seen.lost or (bool(kinds) and kinds <= self.NO_PICTURE)
        seen.tells = not self._layered
        return seen

    def note(self, unit: bytes, sets: Sets) -> None:
        kind = unit[0] >> 1 & 63 if len(unit) > 2 else 0
        if kind == self.VPS:
            number = unit[2] >> 4
        elif kind == self.SPS:
            self._layered = self._layered or bool(unit[2] >> 1 & 7)
            number = _hevc_sequence(_Bits(_head(unit, 128)[2:]))
        elif kind == self.PPS:
            number = _Bits(_head(unit)[2:]).golomb()
        else:
            return
        sets[kind, number] = unit.rstrip(b"\0")


def _hevc_sequence(bits: _Bits) -> int:
    """Return the number of a sequence parameter set, which stands behind the profile and the levels."""
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    return bits.golomb()


class _Mpeg4(_Reader):
    """Take layers for parameter sets, and user data, by which decoders know the faults of encoders."""

    LAYERS, USER, PICTURE = range(0x20, 0x30), 0xB2, 0xB6

    def __init__(self, extradata: bytes) -> None:
        super().__init__(extradata)
        self._ticks = 0  # in a second; 0 if that is not known
        self._learn(self.configured())

    def configured(self) -> Sets:
        return self._sets(_started(self.extradata))

    def read(self, packet: bytes) -> Seen:
        units = [*_started(packet)]
        pictures = [unit for unit in units if unit[0] == self.PICTURE and len(unit) > 1]
        sets = self._sets(iter(units))
        self._learn(sets)
        # Two in one packet are of a stream that packs them: the second waits for the next packet.
        packed = len(pictures) > 1
        return Seen(
            key=len(pictures) == 1 and pictures[0][1] >> 6 == 0,
            sets=sets,
            lost=len(pictures) == 1 and not self._is_coded(pictures[0]),
            tells=not packed,
        )

    def _learn(self, sets: Sets) -> None:
        """Take note of the clock of the layers among ``sets``."""
        for (kind, _), unit in sets.items():
            if kind in self.LAYERS:
                self._ticks = _mpeg4_ticks(_Bits(unit[1:40]))

    def _is_coded(self, picture: bytes) -> bool:
        """Return False for a picture that only says that the one before it stays."""
        bits = _Bits(picture[1:17])
        bits.take(2)
        while bits.take(1):
            pass
        bits.take(1 + max(1, (self._ticks - 1).bit_length()) + 1)
        return bool(bits.take(1)) or not self._ticks

    def _sets(self, units: Iterator[bytes]) -> Sets:
        return {(unit[0], 0): unit for unit in units if unit[0] in self.LAYERS or unit[0] == self.USER}


def _mpeg4_ticks(bits: _Bits) -> int:
    """Return the ticks in a second of a layer's clock, which stand behind its kind, shape and buffer."""
    bits.take(1 + 8)
    version = 1
    if bits.take(1):
        version = bits.take(4)
        bits.take(3)
    if bits.take(4) == 15:
        bits.take(16)
    if bits.take(1):
        bits.take(2 + 1)
        if bits.take(1):
            bits.take(79)
    if bits.take(2) == 3 and version != 1:
        bits.take(4)
    bits.take(1)
    return bits.take(16)


class _Mpeg2(_Reader):
    """Take from a sequence header only what makes decoders begin anew: bit rates may change at any."""

    PICTURE, SEQUENCE = 0x00, 0xB3

    def read(self, packet: bytes) -> Seen:
        seen = Seen(alone=True)
        for unit in _started(packet):
            if unit[0] == self.SEQUENCE:
                seen.sets[self.SEQUENCE, 0] = unit[1:5]
            elif unit[0] == self.PICTURE:
                seen.key = bool(seen.sets) and len(unit) > 2 and unit[2] >> 3 & 7 == 1
                return seen
        return seen


class _Vp8(_Reader):
    def is_key(self, packet: bytes) -> bool:
        return len(packet) > 9 and not packet[0] & 1 and packet[3:6] == b"\x9d\x01\x2a"


class _Vp9(_Reader):
    def is_key(self, packet: bytes) -> bool:
        bits = _Bits(packet[:2])
        marked = bits.take(2) == 2
        profile = bits.take(1) | bits.take(1) << 1
        if profile == 3:
            bits.take(1)
        shows_another, inter = bits.take(1), bits.take(1)
        return marked and len(packet) > 3 and not shows_another and not inter


class _Av1(_Reader):
    SEQUENCE, HEADER, FRAME = 1, 3, 6

    def read(self, packet: bytes) -> Seen:
        seen = Seen(alone=True)
        reduced = 0
        for kind, payload in _av1_units(packet):
            if kind == self.SEQUENCE:
                seen.sets[kind, 0] = payload
                reduced = payload[:1][0] >> 3 & 1 if payload else 0
            elif kind in (self.HEADER, self.FRAME):
                # A key frame that is shown later lets those before it refer to what was there before it.
                shown_key = bool(payload) and payload[0] >> 4 == 0b0001
                seen.key = bool(seen.sets) and (bool(reduced) or shown_key)
                return seen
        return seen


def _av1_units(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and payload of each unit."""
    at = 0
    while at < len(packet):
        kind, extended, sized = packet[at] >> 3 & 15, packet[at] >> 2 & 1, packet[at] >> 1 & 1
        at += 1 + extended
        length = len(packet) - at
        if sized:
            length = 0
            for shift in range(0, 56, 7):
                byte = packet[at] if at < len(packet) else 0
                length |= (byte & 127) << shift
                at += 1
                if not byte & 128:
                    break
        yield kind, packet[at : at + length]
        at += length


class _Jpeg(_Reader):
    """Ask for all tables in a picture, which may rely on those of one before it."""

    def is_key(self, packet: bytes) -> bool:
        return b"\xff\xdb" in packet and b"\xff\xc4" in packet


class _ProRes(_Reader):
    def is_key(self, packet: bytes) -> bool:
        return packet[4:8] == b"icpf"


class _Ffv1(_Reader):
    """Read the first symbol of the range coder, at even odds, which says it."""

    def is_key(self, packet: bytes) -> bool:
        return int.from_bytes(packet[:2], "big") >= 0x7F80


_READERS: dict[str, Callable[[bytes], _Reader]] = {
    "av1": _Av1,
    "dnxhd": _Reader,
    "ffv1": _Ffv1,
    "h264": _H264,
    "hevc": _Hevc,
    "mjpeg": _Jpeg,
    "mpeg1video": _Mpeg2,
    "mpeg2video": _Mpeg2,
    "mpeg4": _Mpeg4,
    "prores": _ProRes,
    "vp8": _Vp8,
    "vp9": _Vp9,
}
"""Readers by FFmpeg's name of the codec. Each packet of those that are a plain ``_Reader`` is a whole picture."""
