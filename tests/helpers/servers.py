"""Streams served on this machine, at the pace of a camera or faster, by senders that do as they are told."""

import contextlib
import functools
import http.server
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av

from tests.helpers.clips import H264, Clip, made

CLIP = Clip("stream.ts", 200, 20, options={**H264, "g": "20", "bf": "2"})
"""Ten seconds with a keyframe every second; frame ``n`` is shown at ``n / 20``."""
LAST = CLIP.frames


@functools.cache
def stream() -> Path:
    return made(CLIP)


@dataclass(frozen=True)
class Piece:
    """One frame: when it is decoded and shown, in seconds, and as bytes of the stream and of the codec."""

    at: float
    shown: float
    data: bytes
    coded: bytes


class _Collector:
    """A file-like object that gives what was written since it was last asked."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


@functools.cache
def pieces(format: str = "mpegts") -> list[Piece]:
    """The frames of the stream, in the order in which they are sent, in a format that can be cut anywhere."""
    collector, found = _Collector(), []
    with av.open(str(stream())) as old:
        new = av.open(collector, "w", format=format, options={"flush_packets": "1"})
        source = old.streams.video[0]
        target = new.add_stream_from_template(source)
        origin = None
        for packet in old.demux(source):
            if not packet.size:
                continue
            origin = packet.pts if origin is None else origin
            at, shown = (float((t - origin) * packet.time_base) for t in (packet.dts, packet.pts))
            coded = bytes(packet)
            packet.stream = target
            new.mux(packet)
            found.append(Piece(at, shown, collector.take(), coded))
    # The header of the container comes out with its first frames.
    return found


@dataclass(frozen=True)
class Play:
    """Frames ``first`` to ``last`` in the order of sending, ``speed`` times as fast as they are shown."""

    first: int = 0
    last: int = LAST
    speed: float = 5.0


Step = Play | float
"""Step of a sender: play, or wait so many seconds."""
ALL: tuple[Step, ...] = (Play(),)


def play(steps: Sequence[Step], send: Callable[[Piece], None], format: str = "mpegts") -> None:
    for step in steps:
        if not isinstance(step, Play):
            time.sleep(step)
            continue
        begun = time.monotonic()
        part = pieces(format)[step.first : step.last]
        for piece in part:
            time.sleep(max(0.0, begun + (piece.at - part[0].at) / step.speed - time.monotonic()))
            send(piece)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Server:
    """Do what it is told to each who connects, one after the other, and then is gone.

    Args:
        talks: for each connection what to do; afterwards it is closed.
        away: seconds during which nobody can connect, after each connection.
    """

    def __init__(self, *talks: Callable[[socket.socket], None], away: float = 0.0) -> None:
        self._talks, self._away = talks, away
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._closed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(20)

    def _serve(self) -> None:
        for i, talk in enumerate(self._talks):
            with contextlib.suppress(OSError):
                if i and self._away:
                    self._socket.close()
                    time.sleep(self._away)
                    self._socket = socket.create_server(("127.0.0.1", self.port))
                if self._closed:
                    return
                connection, _ = self._socket.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    talk(connection)
        self._socket.close()


def bare(*steps: Step) -> Callable[[socket.socket], None]:
    """MPEG-TS, and nothing around it."""

    def talk(connection: socket.socket) -> None:
        play(steps, lambda piece: connection.sendall(piece.data))

    return talk


def stalling(*steps: Step) -> Callable[[socket.socket], None]:
    """The same, which then says nothing more until the other end goes."""

    def talk(connection: socket.socket) -> None:
        bare(*steps)(connection)
        silent(connection)

    return talk


def silent(connection: socket.socket) -> None:
    """Accept, and say nothing until the other end goes."""
    while connection.recv(4096):
        continue


def live_http(*steps: Step, format: str = "mpegts") -> Callable[[socket.socket], None]:
    """An endless answer to a request, in chunks, that says nothing of its length."""

    def talk(connection: socket.socket) -> None:
        with connection.makefile("rb") as requests:
            while requests.readline().strip():
                continue
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nTransfer-Encoding: chunked\r\n\r\n")
        play(steps, lambda piece: connection.sendall(b"%x\r\n%b\r\n" % (len(piece.data), piece.data)), format)

    return talk


def answering(status: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    """The same answer whatever is asked for, and so never a part from somewhere on."""

    def talk(connection: socket.socket) -> None:
        with connection.makefile("rb") as requests:
            while requests.readline().strip():
                continue
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return talk


def rtsp(*steps: Step) -> Callable[[socket.socket], None]:
    """A camera: RTSP, with H.264 as RTP in the same connection."""

    def talk(connection: socket.socket) -> None:
        packets = Rtp(96)
        with connection.makefile("rb") as requests:
            while (line := requests.readline().decode()).strip():
                method, url = line.split()[:2]
                headers = {}
                while (header := requests.readline().decode().strip()) != "":
                    key, _, value = header.partition(":")
                    headers[key.lower()] = value.strip()
                answer, body = "RTSP/1.0 200 OK", ""
                extra = ["Session: 1"]
                if method == "DESCRIBE":
                    body = SDP
                    extra += ["Content-Type: application/sdp", f"Content-Base: {url}/"]
                elif method == "SETUP":
                    if "TCP" not in headers["transport"]:
                        answer = "RTSP/1.0 461 Unsupported Transport"
                    extra += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
                elif method == "OPTIONS":
                    extra += ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
                lines = [answer, f"CSeq: {headers['cseq']}", *extra, f"Content-Length: {len(body)}", "", body]
                connection.sendall("\r\n".join(lines).encode())
                if method == "PLAY":
                    break

        def send(piece: Piece) -> None:
            for packet in packets.of(piece):
                connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)

        play(steps, send)

    return talk


SDP = "\r\n".join(
    [
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=camera",
        "t=0 0",
        "m=video 0 RTP/AVP 96",
        "c=IN IP4 0.0.0.0",
        "a=rtpmap:96 H264/90000",
        "a=fmtp:96 packetization-mode=1",
        "a=control:track1",
        "",
    ]
)


class Rtp:
    """Cut frames into RTP packets: H.264 for a payload type of its own, MPEG-TS for 33."""

    def __init__(self, kind: int) -> None:
        self._kind, self._number = kind, 0

    def of(self, piece: Piece) -> Iterator[bytes]:
        if self._kind == 33:
            for i in range(0, len(piece.data), 7 * 188):
                yield self._packet(piece.data[i : i + 7 * 188], piece.at, False)
            return
        units = [unit.rstrip(b"\0") for unit in re.split(b"\0\0\1", piece.coded)[1:]]
        for unit in units:
            last = unit is units[-1]
            if len(unit) <= 1200:
                yield self._packet(unit, piece.shown, last)
                continue
            parts = [unit[i : i + 1200] for i in range(1, len(unit), 1200)]
            for i, part in enumerate(parts):
                mark = (0x80 if i == 0 else 0) | (0x40 if i == len(parts) - 1 else 0) | (unit[0] & 31)
                head = bytes([(unit[0] & 0xE0) | 28, mark])
                yield self._packet(head + part, piece.shown, last and i == len(parts) - 1)

    def _packet(self, payload: bytes, time: float, last: bool) -> bytes:
        self._number += 1
        clock = round(time * 90000) + 900_000
        return struct.pack(">BBHII", 0x80, self._kind | (last << 7), self._number & 0xFFFF, clock, 7) + payload


def guarded(talk: Callable[[socket.socket], None], certificate: Path) -> Callable[[socket.socket], None]:
    """The same over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def guarded_talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            talk(inner)

    return guarded_talk


@contextlib.contextmanager
def datagrams(kind: str, steps: Sequence[Step]) -> Iterator[str]:
    """Send over UDP, or RTP, to an address that it gives, once somebody listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] & ~1
    packets = Rtp(33)

    def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:

            def send(piece: Piece) -> None:
                for packet in packets.of(piece):
                    with contextlib.suppress(OSError):
                        out.sendto(packet if kind == "rtp" else packet[12:], ("127.0.0.1", port))

            until(lambda: f":{port:04X} " in Path("/proc/net/udp").read_text())
            play(steps, send)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield f"{kind}://127.0.0.1:{port}"
    thread.join(60)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def files(directory: Path, port: int = 0) -> Iterator[str]:
    """Serve a directory over HTTP; yield its URL."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(20)


def segment(directory: Path, speed: float = 0.0, **options: str) -> None:
    """Write the stream as HLS, ``speed`` times as fast as it is shown; at once for 0."""
    settings = {"hls_time": "1", "hls_list_size": "0", **options}
    with av.open(str(stream())) as old, av.open(str(directory / "a.m3u8"), "w", format="hls", options=settings) as new:
        source = old.streams.video[0]
        target = new.add_stream_from_template(source)
        begun, origin = time.monotonic(), None
        for packet in old.demux(source):
            if not packet.size:
                continue
            at = float(packet.dts * packet.time_base)
            origin = at if origin is None else origin
            if speed:
                time.sleep(max(0.0, begun + (at - origin) / speed - time.monotonic()))
            packet.stream = target
            new.mux(packet)


def rtmp(*steps: Step) -> Callable[[socket.socket], None]:
    """A server of live video: just enough RTMP for one who plays."""

    def talk(connection: socket.socket) -> None:
        received = bytearray()

        def hear(until: bytes, more: int = 0) -> bytes:
            """Return what follows ``until``, which is waited for."""
            while (at := received.find(until)) < 0 or len(received) < at + len(until) + more:
                data = connection.recv(65536)
                if not data:
                    raise OSError
                received.extend(data)
            return bytes(received[at + len(until) : at + len(until) + more])

        def say(kind: int, payload: bytes, time: int = 0, channel: int = 3) -> None:
            head = time.to_bytes(3, "big") + len(payload).to_bytes(3, "big") + bytes([kind]) + struct.pack("<I", 1)
            connection.sendall(bytes([channel]) + head + payload)

        def answer(name: str, number: float, *values: object) -> None:
            say(20, b"".join(map(_amf, (name, number, *values))))

        hello = hear(b"\x03", 1536)
        connection.sendall(b"\x03" + bytes(1536) + hello)
        say(1, struct.pack(">I", 1 << 24), channel=2)  # messages are sent in one piece
        hear(b"connect")
        answer("_result", 1.0, {"fmsVer": "FMS/3,0,1,123"}, {"code": "NetConnection.Connect.Success"})
        number = struct.unpack(">d", hear(b"createStream\0", 8))[0]
        answer("_result", number, None, 1.0)
        hear(b"play\0", 8)
        answer("onStatus", 0.0, None, {"level": "status", "code": "NetStream.Play.Start"})

        def send(piece: Piece) -> None:
            for kind, at, data in _flv_tags(piece.data):
                say(kind, data, at, channel=4)

        for kind, at, data in _flv_tags(pieces("flv")[0].data):
            if kind != 9 or data[1] == 0:  # of the stream, not of a frame
                say(kind, data, at, channel=4)
        play(steps, send, "flv")

    return talk


def _flv_tags(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """``(type, time, data)`` of what is in a piece of FLV."""
    data = data[13:] if data.startswith(b"FLV") else data
    while data:
        size, time = int.from_bytes(data[1:4], "big"), int.from_bytes(data[4:7], "big")
        yield data[0], time, data[11 : 11 + size]
        data = data[11 + size + 4 :]


def _amf(value: object) -> bytes:
    """A value as RTMP writes it."""
    if isinstance(value, str):
        return b"\x02" + struct.pack(">H", len(value)) + value.encode()
    if isinstance(value, float):
        return b"\0" + struct.pack(">d", value)
    if isinstance(value, dict):
        return b"\x03" + b"".join(_amf(key)[1:] + _amf(item) for key, item in value.items()) + b"\0\0\x09"
    return b"\x05"
