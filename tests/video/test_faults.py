"""Files that play everywhere, and were refused, or shown wrongly: each stands for a kind."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from kvvideo.errors import VideoError
from kvvideo.types import Chunk
from kvvideo.video import VideoReader, frame_size, plan, probe, read_chunks
from kvvideo.video.bitstream import Access
from kvvideo.video.decoder import Decoder
from kvvideo.video.geometry import fitted
from kvvideo.video.plan import VideoInfo
from kvvideo.video.pyav import PyavDecoder
from kvvideo.video.sampling import Grid
from kvvideo.video.timeline import JUMP_SECONDS, LATE_SECONDS, REORDER, Timeline
from tests.helpers import streams
from tests.helpers.clips import H264, MS, Clip, Image, clip, drain, expected, made, numbers, read

SMALL: dict[str, Any] = {"min_pixels": 1, "max_pixels": 24 * 784}
LATE = [12 + i / 10 for i in range(60)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "mov"])
def test_a_picture_may_begin_long_after_the_sound(suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """More than 500 packets of sound stand before its first."""
    path = made(Clip(f"late12.{suffix}", 60, 10, times=LATE, clock=MS, options=H264, audio=18.0))
    with VideoReader(path, 1, 2, **SMALL) as reader:
        shown = numbers(reader)
    # A packet of TS holds several frames of sound, which begins so much earlier.
    assert shown[:12] == [0] * 12
    assert [round(number / 10) for number in shown[13:18] if number is not None] == [1, 2, 3, 4, 5]
    assert reader.info.duration == pytest.approx(18, abs=0.2)
    assert re.search(r"begins at 0:12(\.1\d*)?; before that its first frame is shown", caplog.text)
    with VideoReader(path, 1, 2, start=3.0, end=14.0, **SMALL) as reader:
        chunks = list(reader)
    assert numbers(chunks)[:9] == [0] * 9
    assert 7 < (numbers(chunks)[10] or 0) <= 10
    assert chunks[0].times[0] == pytest.approx(12, abs=0.15)  # TS has whole packets of sound only


def test_a_gap_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    times = [i / 10 for i in range(60)] + [1200 + i / 10 for i in range(60)]
    path = made(Clip("gap.ts", 120, 10, times=times, clock=Fraction(1, 90000), options={**H264, "bf": "0"}))
    with VideoReader(path, 0.1, 20, **SMALL) as reader:
        assert numbers(reader) == [0] + [59] * 119 + [60] + [60]
    assert "has no frame from 0:06 to 20:00; the one before stands for them" in caplog.text


def test_an_encrypted_file_says_so_before_anything_is_shown() -> None:
    """FFmpeg decodes it to noise."""
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 31 + "1", "encryption_kid": "0" * 32}
    path = made(Clip("protected.mp4", 60, options=H264, container=key))
    with pytest.raises(VideoError, match="is encrypted: kvvideo cannot play what is protected"):
        VideoReader(path)


def test_an_animated_webp_says_what_it_is(tmp_path: Path) -> None:
    pictures = [Pictures.new("RGB", (64, 48), (90 * i, 0, 0)) for i in range(3)]
    still, moving = tmp_path / "still.webp", tmp_path / "moving.webp"
    pictures[0].save(still)
    pictures[0].save(moving, save_all=True, append_images=pictures[1:])
    with pytest.raises(VideoError, match="is an animated WebP, which this FFmpeg cannot read; convert it"):
        VideoReader(moving)
    with pytest.raises(VideoError, match="is an image or text"):
        VideoReader(still)


def test_a_track_without_a_frame_says_so(tmp_path: Path) -> None:
    """And does not call the file damaged."""
    path = tmp_path / "empty.mkv"
    with streams.av.open(str(path), "w") as out:
        out.add_stream("libx264", rate=10, width=64, height=48)
        sound: Any = out.add_stream("aac", rate=8000)
        out.mux(streams._silence(sound, 1.0))
    with pytest.raises(VideoError, match="the picture track of"):
        VideoReader(path)


@pytest.mark.parametrize("turned", [False, True])
def test_a_clip_that_turns_keeps_its_shape(turned: bool, tmp_path: Path) -> None:
    """From landscape to portrait, and back: bars stand beside the picture, which fills the height."""
    wide, high = (160, 120), (120, 160)
    first, then = (high, wide) if turned else (wide, high)
    ticks = Fraction(1, 90000)
    parts = [
        made(
            Clip(f"shape{turned}{i}.ts", 60, 10, size=size, options={**H264, "bf": "0"}, first=540000 * i, clock=ticks)
        )
        for i, size in enumerate((first, then))
    ]
    path = tmp_path / "turns.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoReader(path, 1, 2, **SMALL) as reader:
        chunks = list(reader)
    size = frame_size(*first[::-1], **SMALL)
    inner = fitted(then[::-1], first[::-1], size)
    assert inner != size
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    shown: list[Image] = [frame for chunk in chunks for frame in chunk.frames]
    assert [read(frame) for frame in shown[:6]] == [0, 10, 20, 30, 40, 50]
    inside = [frame[top : top + inner[0], left : left + inner[1]] for frame in shown[6:12]]
    assert [read(np.ascontiguousarray(frame)) for frame in inside] == [0, 10, 20, 30, 40, 50]
    for frame in shown[6:12]:
        assert not frame[:top].any()
        assert not frame[:, :left].any()
        assert frame.shape == (*size, 3)


@given(
    shown=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    box=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_fitted_pictures_lie_in_the_frame(shown: tuple[int, int], box: tuple[int, int], frame: tuple[int, int]) -> None:
    full = 28 * frame[0], 28 * frame[1]
    high, wide = fitted(shown, box, full)
    assert 1 <= high <= full[0]
    assert 1 <= wide <= full[1]
    assert high == full[0] or wide == full[1]
    assert fitted(box, box, full) == full


# Lengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [2, 240])
@pytest.mark.parametrize(
    "clip_",
    [
        Clip("sound.ts", 150, options=H264, audio=12.0),
        Clip("sound.mkv", 150, options=H264, audio=12.0),
        Clip("sound.mp4", 150, options=H264, audio=12.0),
        Clip("fast.mp4", 2400, 240, size=(64, 48), options=H264),
        Clip("fast.mkv", 2400, 240, size=(64, 48), options=H264),
        Clip("fast.ts", 2404, 240, size=(64, 48), options=H264),
    ],
    ids=lambda clip_: clip_.name,
)
def test_the_length_is_that_of_the_picture(clip_: Clip, fps: int) -> None:
    path = made(clip_)
    predicted = plan(probe(path), fps, 8 / fps)
    chunks = list(read_chunks(str(path), fps, 8 / fps, min_pixels=1, max_pixels=6 * 784))
    assert predicted.frames == sum(len(chunk.frames) for chunk in chunks)


def test_a_pause_before_a_cut_counts_once(tmp_path: Path) -> None:
    """FFmpeg counts it twice."""
    path = tmp_path / "pause.mp4"
    times = tuple(Fraction(i, 10) for i in range(200))
    part = streams.Part(times, (64, 48), {"preset": "veryfast", "g": "20"})
    edits = ((None, 5.0), (10.0, 6.0))
    streams.write(
        streams.Stream("pause", "edits", "libx264", "mp4", 10, Fraction(1, 10), (part,), 1, edits=edits), path
    )
    assert probe(path).duration == pytest.approx(6, abs=0.1)
    with VideoReader(path, 2, 4, **SMALL) as reader:
        assert sum(len(chunk.frames) for chunk in reader) == 12


def test_a_cut_may_begin_long_after_a_keyframe(tmp_path: Path) -> None:
    """More frames are decoded for it than may be silent."""
    path = tmp_path / "cut.mp4"
    times = tuple(Fraction(i, 10) for i in range(700))
    part = streams.Part(times, (64, 48), {"preset": "ultrafast", "g": "1000", "sc_threshold": "0"})
    cut = streams.Stream("cut", "edits", "libx264", "mp4", 10, Fraction(1, 10), (part,), 1, edits=((62.0, 6.0),))
    streams.write(cut, path)
    for start in (0.0, 2.5):
        with VideoReader(path, 2, 4, start, **SMALL) as reader:
            shown = [streams.read(frame) for chunk in reader for frame in chunk.frames]
        assert shown[: round(12 - 2 * start)] == [620 + round(10 * start) + 5 * i for i in range(round(12 - 2 * start))]


def test_an_edit_list_may_be_longer_than_the_media(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    times = tuple(Fraction(i, 10) for i in range(80))
    part = streams.Part(times, (64, 48), {"preset": "ultrafast", "g": "20"})
    made_of = streams.Stream("long", "edits", "libx264", "mp4", 10, Fraction(1, 10), (part,), 1, edits=((2.0, 7.5),))
    streams.write(made_of, path)
    with VideoReader(path, 2, 4, **SMALL) as reader:
        chunks, error = drain(reader)
    assert error is None
    assert [streams.read(frame) for chunk in chunks for frame in chunk.frames][:12] == [20 + 5 * i for i in range(12)]


def test_frames_before_time_begins_are_decoded_for_others() -> None:
    """FFmpeg gives the first packets of such a Matroska file no time."""
    early = {"avoid_negative_ts": "disabled"}
    path = made(Clip("early.mkv", 120, first=-60, clock=MS, options=H264, container=early))
    with VideoReader(path, 2, 4, **SMALL) as reader:
        assert reader.info.timed
        assert numbers(reader) == [3, 18, 33, 48, 63, 78, 93, 108]


@pytest.mark.parametrize("start", [0.0, 2.34, 5.9])
def test_program_streams_are_not_sought(start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most packets have no time of their own, and after a seek FFmpeg guesses others."""
    monkeypatch.setattr("kvvideo.video.packets.READ_BYTES", 0)
    path = made(Clip("program.mpg", 200, 25, codec="mpeg2video", format="mpeg", options={"bf": "2", "qscale": "3"}))
    wanted = expected(path, 10, start, 7.4)  # FFmpeg gives the last frames times that go back
    got = numbers(read_chunks(str(path), 10, 4, start, 7.4, **SMALL))
    assert got == wanted + wanted[-1:] * (len(wanted) % 2)


def test_pictures_that_only_say_that_nothing_changed(tmp_path: Path) -> None:
    """XviD writes them; no frame comes of one, for longer than a decoder may be silent."""
    path = tmp_path / "still.mp4"
    with streams.av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=10, width=64, height=48, options={"qscale": "2", "g": "10"})
        packets: list[Any] = []
        for i in range(40):
            frame = streams.av.VideoFrame.from_ndarray(streams.draw(i, 64, 48), format="yuv420p")
            frame.pts = i
            packets += video.encode(frame)
        packets += video.encode(None)
        for i in range(440):
            # A P-picture that is not coded, at a tick of this second or the first of the next.
            unchanged = b"\0\0\1\xb6" + (bytes([0x50 | i % 10, 0x9F]) if i % 10 else b"\x68\x4f")
            packet = packets[i] if i < 20 else streams.av.Packet(unchanged) if i < 420 else packets[i - 400]
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 10), video
            out.mux(packet)
    for abreast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PyavDecoder, "abreast", abreast)
            chunks = list(read_chunks(str(path), 1, 4, **SMALL))
        assert [streams.read(frame) for chunk in chunks for frame in chunk.frames] == [0, 10] + [19] * 40 + [20, 30]


# Frames of the future ----------------------------------------------------------------------------------


class Ahead(Decoder):
    """A decoder that gives frames ``late`` seconds late."""

    name = "ahead"

    def __init__(self, late: float, first: float) -> None:
        self.info, self._late, self.first = VideoInfo("x.mp4", 56, 56, 10.0, 10.0, "h264", "mp4"), late, first

    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, Image]]:
        for i in range(grid.count_before(10.0)):
            yield grid.time(i) + self._late, np.zeros((height, width, 3), np.uint8)

    def close(self) -> None: ...


def test_no_decoder_answers_a_moment_from_a_later_frame() -> None:
    grid = Grid.of(2, 4, 2.0, None)

    def chunks(late: float, first: float) -> list[Chunk]:
        return list(Ahead(late, first).chunks(grid, 784, 784))

    assert len(chunks(0.0, 0.0)) == len(chunks(-0.4, 0.0)) == 2
    for late in (0.01, 1.0):
        with pytest.raises(VideoError, match=r"gave a frame of 0:02.* for 0:02 of 'x.mp4'|of 0:03 for 0:02"):
            chunks(late, 0.0)
    assert len(list(Ahead(0.5, 2.5).still(grid))) == 1  # the first of all stands for what is before it
    with pytest.raises(VideoError, match="fault of kvvideo"):
        list(Ahead(0.5, 2.4).still(grid))


@pytest.mark.parametrize("abreast", [True, False])
def test_where_nothing_comes_out_an_earlier_place_is_begun_at(
    abreast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A damaged group is not answered from the one after it."""
    monkeypatch.setattr(PyavDecoder, "abreast", abreast)
    source = clip("long_gop.mp4")  # keyframes at 0, 8.33 and 16.67 s
    data = bytearray(source.read_bytes())
    with streams.av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[250:500]:
        data[packet.pos + 5 : packet.pos + packet.size] = b"\xff" * (packet.size - 5)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    for most in (0, 2**27):
        monkeypatch.setattr("kvvideo.video.packets.READ_BYTES", most)
        chunks, _ = drain(read_chunks(str(path), 1, 2, 9.0, **SMALL))
        shown = numbers(chunks)
        assert shown[-3:] == [540, 570, 570]
        assert all(number is None or number < 500 for number in shown[:8])
        assert all(time <= chunk.start + i + 1e-6 for chunk in chunks for i, time in enumerate(chunk.times))


# Parameter sets ----------------------------------------------------------------------------------------


def units(*units: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


SPS, OTHER_SPS, PPS, OTHER_PPS, NEXT_PPS = (
    bytes.fromhex(unit) for unit in ("6764000aac72", "6764000aac73", "68e8", "68e9", "6848")
)
IDR, SLICE = b"\x65\x88\x80", b"\x41\x9a"


def test_parameter_sets_must_be_known_where_decoding_begins() -> None:
    def access(*packets: bytes, sets: tuple[bytes, ...] = (SPS, PPS)) -> list[bool]:
        followed = Access("h264", units(*sets))
        return [followed.read(packet) for packet in packets]

    idr, repeated, slice_ = units(IDR), units(SPS, PPS, IDR), units(SLICE)
    assert access(idr, slice_, repeated, idr) == [True, False, True, True]
    # One that is another: not where it comes, and afterwards only with all there are.
    assert access(idr, units(OTHER_SPS, PPS, IDR), idr, units(OTHER_SPS, PPS, IDR)) == [True, False, False, True]
    # One that is new counts among them, wherever it came.
    assert access(units(NEXT_PPS, SLICE), repeated, units(SPS, PPS, NEXT_PPS, IDR)) == [False, False, True]
    assert access(units(SLICE), units(OTHER_PPS, SLICE), idr, units(OTHER_PPS, IDR)) == [False] * 4
    # None beside the stream: those of its first packet are all there are.
    assert access(repeated, idr, repeated, sets=()) == [False, False, True]


def test_another_configuration_ends_it() -> None:
    """Decoders that were opened with the first do not know it."""
    followed = Access("vp9", b"first")
    key = b"\x82\x49\x83\x42"
    assert followed.read(key)
    assert followed.read(key, b"first")
    assert not followed.read(key, b"other")
    assert not followed.read(key)


@pytest.mark.parametrize(
    ("codec", "packet", "begins"),
    [
        ("hevc", units(b"\x26\x01\xaf"), True),  # IDR_W_RADL
        ("hevc", units(b"\x2a\x01\xaf"), True),  # CRA
        ("hevc", units(b"\x02\x01\xd0"), False),  # TRAIL_R
        ("hevc", units(b"\x26\x01\xef"), False),  # pictures before it are to be thrown away
        ("mpeg4", b"\0\0\1\xb6\x10\x60", True),
        ("mpeg4", b"\0\0\1\xb6\x50\x60", False),
        ("mpeg4", b"\0\0\1\xb6\x10\x60\0\0\1\xb6\x90", False),  # two in one packet
        ("mpeg2video", b"\0\0\1\0\0\x0f\xff", False),  # no sequence header
        ("vp8", b"\x10\x02\0\x9d\x01\x2a\x40\0\x30\0", True),
        ("vp8", b"\x11\x02\0\x9d\x01\x2a\x40\0\x30\0", False),
        ("vp9", b"\x82\x49\x83\x42", True),
        ("vp9", b"\x86\x49\x83\x42", False),
        ("av1", b"\x32\x02\x10\0", False),  # no sequence header
        ("mjpeg", b"\xff\xd8\xff\xdb\0\xff\xc4\0", True),
        ("mjpeg", b"\xff\xd8\xff\xc0\0", False),  # tables of a picture before it
        ("prores", b"\0\0\1\0icpf", True),
        ("ffv1", b"\x80\x12", True),
        ("ffv1", b"\x10\x12", False),
    ],
)
def test_a_keyframe_is_one_because_the_bitstream_says_so(codec: str, packet: bytes, begins: bool) -> None:
    assert Access(codec, None).read(packet) is begins


def test_what_holds_no_picture_is_not_waited_for() -> None:
    h264, hevc = Access("h264", None), Access("hevc", None)
    for packet, lost in (
        (units(b"\x0c\xff\x80"), True),
        (units(SPS, PPS), True),
        (units(IDR), False),
        (bytes(90), False),
    ):
        h264.read(packet)
        assert h264.seen.lost is lost
    hevc.read(units(b"\x4e\x01\x05"))  # supplemental information
    assert hevc.seen.lost


def test_pictures_of_higher_layers_may_refer_to_those_that_nobody_refers_to() -> None:
    """So none of such a stream is skipped."""
    for layers, tells in ((0, True), (2, False)):
        hevc = Access("hevc", units(b"\x42\x01" + bytes([layers << 1 | 1]) + bytes(30)))
        hevc.read(units(b"\x02\x01\xd0"))
        assert hevc.seen.tells is tells


def test_a_sequence_that_ends_is_a_join() -> None:
    cra, trail, end, skipped = (units(bytes.fromhex(unit)) for unit in ("2a01af", "0201d0", "4801", "1001d0"))
    hevc = Access("hevc", None)
    assert [hevc.read(packet) for packet in (cra, trail, cra, trail + end)] == [True, False, True, False]
    assert not hevc.read(cra)
    assert hevc.joins
    hevc.read(skipped)
    assert hevc.seen.lost  # it refers to what was before the end


def test_changing_sequences_are_joins() -> None:
    def mpeg2(size: bytes, kind: int) -> bytes:
        return b"\0\0\1\xb3" + size + b"\x13" + b"\0\0\1\0\0" + bytes([kind << 3]) + b"\xff"

    followed = Access("mpeg2video", None)
    seen = [followed.read(packet) for packet in (mpeg2(b"aaa", 1), mpeg2(b"aaa", 1), mpeg2(b"aaa", 2))]
    assert seen == [False, True, False]
    assert not followed.read(mpeg2(b"bbb", 1))
    assert followed.joins
    assert followed.read(mpeg2(b"bbb", 1))
    av1 = [b"\x0a\x02" + sequence + b"\x32\x02\x10\0" for sequence in (b"\0a", b"\0a", b"\0b", b"\0b")]
    followed = Access("av1", None)
    assert [followed.read(packet) for packet in av1] == [False, True, False, True]


# Time ----------------------------------------------------------------------------------------------------


def laid(times: list[float], start: float = 0.0) -> list[float | None]:
    """Return the times at which a timeline puts frames of a tenth of a second; None for those that it hides."""
    timeline: Timeline[float] = Timeline(start)
    placed = [each for time in times for each in timeline.place(time, time, 0.1)] + timeline.rest()
    assert [each.item for each in placed] == times
    return [None if each.shift is None else each.item + each.shift for each in placed]


def test_a_clock_that_is_set_anew_goes_on_from_the_end() -> None:
    first = [i / 10 for i in range(80)]
    for begin in (-50.0, 0.0, 90_000.0):
        times = first + [begin + i / 10 for i in range(30)]
        assert laid(times) == pytest.approx([i / 10 for i in range(110)])


@given(
    ahead=st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=REORDER),
    at=st.integers(20, 40),
)
def test_damaged_times_are_hidden_and_change_no_other(ahead: list[float], at: int) -> None:
    sound = [i / 10 for i in range(60)]
    mad = [time for time in ahead if time > JUMP_SECONDS + 10 or time < -LATE_SECONDS - 1]
    assert laid(sound[:at] + mad + sound[at:]) == sound[:at] + [None] * len(mad) + sound[at:]


@given(st.lists(st.floats(0, 1e6), max_size=80), st.sampled_from([0.0, 50.0]))
def test_every_frame_keeps_its_order(times: list[float], start: float) -> None:
    assert len(laid(times, start)) == len(times)


def test_the_picture_is_the_same_wherever_it_is_read_from(tmp_path: Path) -> None:
    """A file that is sought in, one that is read from the beginning, and a pipe: joined recordings included."""
    for name in ("plain.mp4", "hevc.ts", "live.mkv"):
        for start in (0.0, 4.3, 9.0):
            with VideoReader(clip(name), 2, 4, start, **SMALL) as reader:
                shown = numbers(reader)
            wanted = expected(clip(name), 2, start)
            assert shown == wanted + wanted[-1:] * (len(wanted) % 2)


@pytest.mark.parametrize("cores", [1, 8])
@pytest.mark.parametrize("then", ["gone", "another"])
def test_a_file_that_is_open_may_be_renamed_or_replaced(
    cores: int, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders of groups are opened later, and must open the same file."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    path = tmp_path / "file.mp4"
    path.write_bytes(clip("plain.mp4").read_bytes())
    with PyavDecoder(str(path), lambda _: None) as decoder:
        path.unlink()
        if then == "another":
            path.write_bytes(clip("long_gop.mp4").read_bytes())
        chunks = list(decoder.chunks(Grid.of(2, 4, None, None), 784, 24 * 784))
    assert numbers(chunks) == expected(clip("plain.mp4"), 2)
