"""Whether decoding can begin at a keyframe: what containers call one is not always enough.

H.264 marks as keyframes also the recovery points of intra refresh, from which the picture only becomes
right after a while. Decoding may jump to such a packet only if it says "right at once".
"""

from collections.abc import Iterator

CLEAN = {
    *("av1", "dnxhd", "ffv1", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4"),
    *("prores", "rawvideo", "vp8", "vp9"),
}
"""Codecs whose keyframes are always complete."""

_IDR, _SEI = 5, 6  # H.264 NAL unit types
_RECOVERY_POINT = 6  # SEI payload type


def can_restart(codec: str, extradata: bytes | None, keyframe: bytes) -> bool:
    """Whether ``keyframe``, a packet marked as one, can be decoded without any before it.

    False for codecs this module knows nothing of: then nothing is skipped, which is slower and right.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: of the stream; for H.264 it says how units are delimited.
    """
    if codec != "h264":
        return codec in CLEAN
    for unit in _units(extradata or b"", keyframe):
        kind = unit[0] & 31
        if kind == _IDR or (kind == _SEI and _recovers_at_once(unit[1:])):
            return True
    return False


def _units(extradata: bytes, packet: bytes) -> Iterator[bytes]:
    """The non-empty NAL units of a packet, with length prefixes (mp4, mkv) or start codes (TS)."""
    if extradata[:1] != b"\x01" or len(extradata) < 5:
        yield from (unit for unit in packet.split(b"\0\0\1")[1:] if unit)
        return
    prefix = (extradata[4] & 3) + 1
    at = 0
    while at + prefix < len(packet):
        length = int.from_bytes(packet[at : at + prefix], "big")
        at += prefix
        if length:
            yield packet[at : at + length]
        at += length


def _recovers_at_once(sei: bytes) -> bool:
    """Whether supplemental information holds a recovery point with a frame count of 0."""
    sei = sei.replace(b"\0\0\3", b"\0\0")  # emulation prevention
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
        if kind == _RECOVERY_POINT and at < len(sei):
            return bool(sei[at] & 0x80)  # Exp-Golomb: a leading 1 bit is the value 0
        at += size
    return False
