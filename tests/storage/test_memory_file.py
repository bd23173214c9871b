"""Memories as bytes and as files: the same comes back, or one line says why not."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.session.memory import Memory
from kvvideo.session.model_files import of_model
from kvvideo.storage import codec
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile, is_memory_file, write
from kvvideo.video import fingerprint, probe
from tests.helpers import ROOT

LAYERS, HEADS, DIM, ROWS = 2, 2, 8, 3


def memory(end: float = 8.0, seed: int = 0, dtype: torch.dtype = torch.float32, live: int = 5) -> Memory:
    random = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, LAYERS, HEADS, live, DIM, generator=random).to(dtype)
    return Memory(
        model="tiny",
        fingerprint="0f" * 16,
        cache=CacheConfig("streaming", max_tokens=256, window=64),
        opening="Sieh hin: 看\n",
        position=live + 7,
        live=live,
        evicted=11,
        compactions=2,
        chunks=2,
        frames=16,
        end=end,
        tensors={
            "keys": keys,
            "values": values,
            "state": torch.arange(LAYERS * ROWS * HEADS * live, dtype=torch.int32).view(LAYERS, ROWS, HEADS, live),
            "log": torch.tensor(
                [[-3, 8, 0, end / 2], [5, 2, end / 2, end / 2], [7, 8, end / 2, end]], dtype=torch.float64
            ),
            "index": torch.randn(2, LAYERS, HEADS, DIM, generator=random).to(dtype),
            "index_spans": torch.tensor([[0, end / 2, 1], [end / 2, end, 3]], dtype=torch.float64),
            "stream.0.mean": torch.randn(4, DIM, generator=random),
            "stream.1.seen": torch.tensor(seed),
            "stream.1.odd": torch.tensor([True, False, True]),
        },
        source={"video": "a.mp4", "fps": 2.0, "size": [None, 28]},
    )


def same(a: Memory, b: Memory) -> bool:
    return (
        replace(a, tensors={}) == replace(b, tensors={})
        and a.tensors.keys() == b.tensors.keys()
        and all(a.tensors[name].dtype == b.tensors[name].dtype for name in a.tensors)
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    )


def one_line(error: BaseException) -> str:
    assert str(error)
    assert str(error).isprintable()
    return str(error)


def refused(data: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        codec.decode(data, "some\nname")
    assert "some\\nname" in str(caught.value)
    return one_line(caught.value)


def edited(data: bytes, edit: Callable[[dict[str, Any], dict[str, Any]], Any]) -> bytes:
    """``data`` after ``edit`` of its head and its facts, with the CRC that fits."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    facts = json.loads(head["__metadata__"]["kvvideo"])
    edit(head, facts)
    if "__metadata__" in head:
        head["__metadata__"] = {"kvvideo": json.dumps(facts)}
    text = json.dumps(head).encode()
    body = len(text).to_bytes(8, "little") + text + data[8 + length : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_back_is_the_same(dtype: torch.dtype):
    saved = memory(dtype=dtype)
    data = codec.encode(saved)
    loaded = codec.decode(data, "x")
    assert same(saved, loaded)
    for name, tensor in loaded.tensors.items():
        tensor.zero_()
        assert tensor.is_contiguous(), name
    assert same(codec.decode(data, "x"), saved)


def test_what_is_not_contiguous_is_saved_as_if_it_was():
    saved = memory()
    turned = {**saved.tensors, "keys": saved.tensors["keys"].transpose(1, 2).contiguous().transpose(1, 2)}
    assert not turned["keys"].is_contiguous()
    assert codec.encode(replace(saved, tensors=turned)) == codec.encode(saved)


def test_an_empty_memory_comes_back():
    saved = replace(memory(live=0), chunks=0)
    saved.tensors["log"] = torch.zeros(0, 4, dtype=torch.float64)
    assert same(codec.decode(codec.encode(saved), "x"), saved)


def test_others_can_read_it():
    load = pytest.importorskip("safetensors.torch").load
    saved = memory(dtype=torch.bfloat16)
    found = load(codec.encode(saved))
    del found["crc32"]
    assert same(replace(saved, tensors=found), saved)


def test_only_the_head_is_read_for_the_end(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(codec.encode(memory(end=480.0333)))
    with open(path, "rb") as stream:
        assert codec.end(stream, path.stat().st_size, "x") == 480.0333
        stream.seek(0)
        codec.check(stream, path.stat().st_size, "x")


def without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda head, facts: (head if name in head else facts).pop(name)


def fact(name: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda head, facts: facts.update({name: value})


def renamed(name: str, other: str) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda head, facts: head.update({other: head.pop(name)})


def entry(name: str, **changes: object) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    return lambda head, facts: head[name].update(changes)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (fact("version", 3), "newer kvvideo (format 3, this one reads up to 2); update kvvideo"),
        (fact("version", 0), "not a kvvideo memory"),
        (fact("version", True), "not a kvvideo memory"),
        (fact("version", "1"), "not a kvvideo memory"),
        (fact("format", "other"), "not a kvvideo memory"),
        (without("format"), "not a kvvideo memory"),
        (without("__metadata__"), "not a kvvideo memory"),
        *((without(name), f"no '{name}'") for name in ("model", "cache", "opening", "live", "end", "source")),
        (fact("other", 1), "unknown 'other'"),
        (fact("model", 5), "model is not a text"),
        (fact("cache", []), "cache is not a JSON object"),
        (fact("source", "x"), "source is not a JSON object"),
        (fact("frames", -1), "frames is not a whole number"),
        (fact("frames", 1.0), "frames is not a whole number"),
        (fact("frames", False), "frames is not a whole number"),
        (fact("position", 2**63), "position is not a whole number"),
        (fact("live", 6), "keys are [2, 2, 5, 8] for 6 tokens"),
        (fact("chunks", 4), "log is [3, 4] for 4 chunks"),
        (fact("end", -1.0), "end is not a time"),
        (fact("end", "8"), "end is not a time"),
        (fact("end", math.nan), "its description is not JSON"),
        (fact("end", math.inf), "its description is not JSON"),
        (fact("end", 1e300), "end is not a time"),
        (fact("end", 10**400), "end is not a time"),
        (fact("cache", {"colour\n": 1}), "cache settings that this kvvideo cannot use: colour?: not a setting"),
        (fact("cache", {"strategy": "none"}), "strategy: no 'none'"),
        (fact("cache", {"max_tokens": 10**400}), "cache settings that this kvvideo cannot use"),
        (fact("cache", {"strategy": []}), "cache settings that this kvvideo cannot use"),
        (entry("keys", dtype="I32"), "'keys' is of dtype 'I32'"),
        (entry("keys", dtype="F8"), "'keys' is of dtype 'F8'"),
        (entry("keys", dtype=[]), "'keys' is of dtype []"),
        (entry("keys", dtype="F16"), "'keys' is not where it should be"),
        (entry("keys", shape=[2, 2, 40]), "keys are [2, 2, 40] for 5 tokens"),
        (entry("keys", shape=[2, 2, 8, 5]), "keys are [2, 2, 8, 5] for 5 tokens"),
        (entry("values", shape=[4, 1, 5, 8]), "values are F32 [4, 1, 5, 8] where keys are F32 [2, 2, 5, 8]"),
        (entry("state", shape=[2, 2, 3, 5]), "state is [2, 2, 3, 5]"),
        (entry("state", dtype="F32"), "'state' is of dtype 'F32'"),
        (entry("log", shape=[4, 3]), "log is [4, 3] for 2 chunks"),
        (entry("log", dtype="I64"), "'log' is of dtype 'I64'"),
        (entry("index", shape=[2, 2, 1, 16]), "its index is of another shape or dtype than its keys"),
        (entry("index", shape=[64]), "its index is of another shape or dtype than its keys"),
        (entry("index", dtype="I32"), "its index is of another shape or dtype than its keys"),
        (entry("index_spans", shape=[3, 2]), "its index has no times, or other ones"),
        (entry("index_spans", shape=[6]), "its index has no times, or other ones"),
        (entry("index_spans", dtype="I64"), "its index has no times, or other ones"),
        (renamed("index", "stream.0.index"), "its index is of another shape or dtype than its keys"),
        (renamed("index_spans", "stream.0.spans"), "its index has no times, or other ones"),
        (entry("keys", shape=[2**40] * 4), "'keys' has no possible shape"),
        (entry("keys", shape=[-2, -2, 5, 8]), "'keys' has no possible shape"),
        (entry("keys", shape="2"), "'keys' has no possible shape"),
        (entry("stream.0.mean", shape=[0, 2**50, 2**50]), "'stream.0.mean' has no possible shape"),
        (entry("stream.0.mean", shape=[2**50]), "'stream.0.mean' is not where it should be"),
        (entry("keys", data_offsets=[0, 2**50]), "not where it should be"),
        (entry("keys", data_offsets=[0]), "'keys' has no place"),
        (entry("keys", data_offsets=None), "'keys' has no place"),
        (entry("keys", more=1), "'keys' is not described"),
        (lambda head, facts: head.update(keys=3), "'keys' is not described"),
        (lambda head, facts: head.update(other=head.pop("keys")), "no tensor 'keys'"),
        (lambda head, facts: head.update(other=head.pop("crc32")), "no checksum"),
        (lambda head, facts: head.update({"stream.9.mean": head.pop("stream.0.mean")}), "'stream.9.mean'"),
        (lambda head, facts: head.update({"../\n": head.pop("stream.0.mean")}), "unknown tensor"),
        (without("stream.0.mean"), "not where it should be"),
    ],
)
def test_whatever_is_wrong_is_said(edit: Callable[[dict[str, Any], dict[str, Any]], Any], words: str):
    assert words in refused(edited(codec.encode(memory()), edit))


def test_editing_alone_breaks_nothing():
    assert same(codec.decode(edited(codec.encode(memory()), lambda head, facts: None), "x"), memory())


def test_nesting_has_an_end():
    deep = b'{"a":' * 100_000
    assert "nested too deeply" in refused(len(deep).to_bytes(8, "little") + deep)


def no_chunks() -> dict[str, torch.Tensor]:
    return {"index": torch.zeros(0, LAYERS, HEADS, DIM), "index_spans": torch.zeros(0, 3, dtype=torch.float64)}


def spans(start: float, chunks: float) -> torch.Tensor:
    return torch.tensor([[start, 4, chunks], [4, 8, 1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end": math.nan}, "end is not a time"),
        ({"live": 9}, "for 9 tokens"),
        ({"frames": -1}, "frames"),
        ({"opening": "x" * (1 << 25)}, "its texts are too long"),
        ({"source": {"fps": math.nan}}, "not JSON compliant"),
        ({"source": {"path": Path()}}, "not JSON serializable"),
        ({"tensors": {}}, "no tensor 'keys'"),
        ({"tensors": {**memory().tensors, "log": torch.full((3, 4), math.inf, dtype=torch.float64)}}, "log has"),
        ({"tensors": {**memory().tensors, "index": torch.zeros(0, LAYERS, HEADS, DIM)}}, "its index has no times"),
        ({"tensors": {**memory().tensors, **no_chunks()}}, "its index has no times"),
        ({"tensors": {**memory().tensors, "index_spans": spans(math.nan, 1)}}, "times or counts that cannot be"),
        ({"tensors": {**memory().tensors, "index_spans": spans(0, 0)}}, "times or counts that cannot be"),
        ({"tensors": {**memory().tensors, "keys": torch.zeros(1, dtype=torch.complex64)}}, "'keys' is complex64"),
    ],
)
def test_what_could_not_be_read_is_not_written(change: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        codec.encode(replace(memory(), **change))


@pytest.mark.parametrize(
    ("name", "words"),
    [("log", "log has numbers that cannot be"), ("index_spans", "its index has times or counts that cannot be")],
)
def test_times_are_numbers(name: str, words: str):
    data, tensor = codec.encode(memory()), memory().tensors[name]
    good, bad = tensor.numpy().tobytes(), torch.full_like(tensor, math.nan).numpy().tobytes()
    assert good in data
    assert words in refused(edited(data.replace(good, bad), lambda head, facts: None))


def test_a_memory_of_an_older_version_has_no_index():
    kept = {name: tensor for name, tensor in memory().tensors.items() if not name.startswith("index")}
    saved = replace(memory(), tensors=kept)
    data = codec.encode(saved)
    assert same(codec.decode(data, "x"), saved)
    # What reads only version 1 calls one with an index newer, not damaged.
    assert b'\\"version\\": 1' in data
    assert b'\\"version\\": 2' in codec.encode(memory())


DATA = codec.encode(memory())


def decoded(data: bytes) -> None:
    """That the outcome is the memory, or one line."""
    try:
        found = codec.decode(data, "x")
    except ConfigError as error:
        one_line(error)
    else:
        assert same(found, memory())


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few bytes changed, inserted, left out or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        # The ends of a file are where most of its structure is.
        size = len(data)
        first, last = st.integers(0, min(200, size)), st.integers(max(size - 200, 0), size)
        place = draw(first | last | st.integers(0, size))
        kind = draw(st.sampled_from(["change", "insert", "drop", "cut"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if kind == "change":
            data = data[:place] + some + data[place + len(some) :]
        elif kind == "insert":
            data = data[:place] + some + data[place:]
        elif kind == "drop":
            data = data[:place] + data[place + len(some) :]
        else:
            data = data[:place]
    return data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.integers(10**30, 10**31),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
FACTS = ["version", "format", "model", "fingerprint", "cache", "opening", "position", "live", "end", "source", "chunks"]
SETTINGS = list(CacheConfig().as_dict())
ENTRIES = ["keys", "values", "state", "log", "index", "index_spans", "stream.0.mean", "crc32", "__metadata__"]


@given(data=st.binary(max_size=400) | damaged(DATA))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_the_same(data: bytes):
    decoded(data)


@given(data=st.binary(max_size=100), length=st.integers(0, 2**64 - 1) | st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_any_head_is_refused(data: bytes, length: int):
    refused(length.to_bytes(8, "little") + data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_head_of_other_types_is_refused(data: st.DataObject):
    value, where = data.draw(JSON), data.draw(st.sampled_from(["fact", "setting", "entry", "part"]))

    def edit(head: dict[str, Any], facts: dict[str, Any]) -> None:
        if where == "fact":
            facts[data.draw(st.sampled_from(FACTS))] = value
        elif where == "setting":
            facts["cache"][data.draw(st.sampled_from(SETTINGS) | st.text())] = value
        elif where == "entry":
            head[data.draw(st.sampled_from(ENTRIES) | st.text())] = value
        else:
            part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            head[data.draw(st.sampled_from(ENTRIES[:-1]))][part] = value

    try:
        found = codec.decode(edited(DATA, edit), "x")
    except ConfigError as error:
        one_line(error)
    else:
        assert codec.decode(codec.encode(found), "x").end == found.end


def earlier(directory: Path, *ends: float) -> Checkpoints:
    checkpoints = Checkpoints(directory)
    for end in ends:
        checkpoints.add(memory(end, seed=int(end)))
    return checkpoints


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with memories at 2, 4.0004 and 8 seconds."""
    path = tmp_path / "x.kvv"
    with earlier(tmp_path / "checkpoints", 2.0, 4.0004, 9.0) as checkpoints:
        write(path, memory(), checkpoints)
    return path


def test_a_file_has_the_end_and_what_was_before(saved: Path):
    with MemoryFile(saved) as file:
        assert file.times == [2.0, 4.0004, 8.0]
        assert same(file.memory(), memory())
        assert same(file.before(8.0), memory())
        assert same(file.before(1e9), memory())
        assert same(file.before(7.9), memory(4.0004, seed=4))
        assert same(file.before(4.0004), memory(4.0004, seed=4))
        assert file.before(4.0003).end == 2.0
        with pytest.raises(ConfigError, match="has no memory as early as that; its earliest is of 0:02"):
            file.before(1.5)


def test_a_file_is_what_it_is_said_to_be(saved: Path):
    with zipfile.ZipFile(saved) as archive:
        assert {(info.filename, info.compress_type) for info in archive.infolist()} == {
            ("memory.safetensors", zipfile.ZIP_STORED),
            ("manifest.json", zipfile.ZIP_STORED),
            ("checkpoints/000000002000.safetensors", zipfile.ZIP_STORED),
            ("checkpoints/000000004000.safetensors", zipfile.ZIP_STORED),
        }
        assert archive.read("memory.safetensors") == DATA
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest == {"format": "kvvideo memory", "version": 1, "checkpoints": [2.0, 4.0004]}


def test_a_file_can_be_written_without_checkpoints_and_over_another(saved: Path):
    write(saved, memory(16.0))
    with MemoryFile(str(saved)) as file:
        assert file.times == [16.0]
        with pytest.raises(ConfigError, match="earliest is of 0:16"):
            file.before(8.0)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["checkpoints", "x.kvv"]


def test_damaged_checkpoints_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with earlier(tmp_path / "c", 2.0, 4.0) as checkpoints:
        checkpoints.flush()
        with open(checkpoints.path(4.0), "r+b") as stream:
            stream.seek(-9, os.SEEK_END)
            stream.write(b"x")
        write(tmp_path / "x.kvv", memory(), checkpoints)
    assert "its checksum is wrong" in caplog.text
    with MemoryFile(tmp_path / "x.kvv") as file:
        assert file.times == [2.0, 8.0]


def test_what_is_a_memory_by_name_or_content(saved: Path):
    other = saved.rename(saved.with_name("x.mp4"))
    assert is_memory_file(other)
    assert is_memory_file("missing.KVV")
    other.write_bytes(b"\0\0\0\x20ftypisom")
    assert not is_memory_file(other)
    assert not is_memory_file(saved.parent)
    assert not is_memory_file("missing.mp4")
    assert not is_memory_file("rtsp://host/x")
    assert not is_memory_file("x" * 5000)


def test_a_memory_that_is_taken_for_a_video_is_named(saved: Path):
    for name in ("x.kvv", "x.mp4"):
        saved = saved.rename(saved.with_name(name))
        with pytest.raises(VideoError, match="is a saved memory, not a video; ask it with 'kvvideo ask'"):
            probe(saved)


def opening(path: Path) -> str:
    with pytest.raises(ConfigError) as caught, MemoryFile(path) as file:
        file.memory()
    return one_line(caught.value)


def test_what_is_no_memory_is_told_apart(saved: Path):
    whole = saved.read_bytes()
    assert "is a folder" in opening(saved.parent)
    assert "there is no" in opening(saved.with_name("missing\n.kvv"))
    assert "there is no" in opening(saved / "below")
    assert "cannot be read: File name too long" in opening(saved.with_name("x" * 300))
    os.mkfifo(saved.with_name("fifo"))
    assert "is not a kvvideo memory" in opening(saved.with_name("fifo"))
    saved.write_bytes(b"")
    assert "is empty, and so not a kvvideo memory" in opening(saved)
    saved.write_bytes(b"\0\0\0\x20ftypisom" * 50)
    assert "is not a kvvideo memory; make one with 'kvvideo ingest'" in opening(saved)
    saved.write_bytes(b"\0" + whole)
    assert "is not a kvvideo memory" in opening(saved)
    saved.write_bytes(whole[: len(whole) // 2])
    assert "is cut short or damaged; make it again with 'kvvideo ingest'" in opening(saved)
    saved.write_bytes(whole.replace(memory().tensors["keys"].numpy().tobytes(), b"\0" * 640))
    assert "damaged" in opening(saved)
    saved.write_bytes(whole[:-6] + b"\xff\xff\xff" + whole[-3:])
    assert "damaged" in opening(saved)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(path: Path, content: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def manifest(*times: object, **changes: object) -> dict[str, bytes]:
    fields = {"format": "kvvideo memory", "version": 1, "checkpoints": times, **changes}
    return {"manifest.json": json.dumps(fields).encode()}


def test_archives_of_other_things_are_told_apart(saved: Path):
    good = members(saved)
    end = {"memory.safetensors": good["memory.safetensors"]}
    assert "some other archive" in opening(archived(saved, {"word/document.xml": b""}))
    assert "it is compressed" in opening(archived(saved, good, compression=zipfile.ZIP_DEFLATED))
    assert "it is compressed" in opening(archived(saved, good, compression=zipfile.ZIP_LZMA))
    assert "it holds '../x'" in opening(archived(saved, {**good, "../x": b""}))
    assert "damaged" in opening(archived(saved, {**manifest(2.0), **end}))
    assert "damaged" in opening(archived(saved, manifest()))
    assert "(format 7, this one reads up to 2); update kvvideo" in opening(
        archived(saved, {**good, **manifest(version=7, more=[]), "more": b""})
    )
    first, second, _, _ = sorted(good)
    assert "damaged" in opening(archived(saved, {**good, **manifest(4.0004, 2.0)}))
    assert "damaged" in opening(archived(saved, {**good, **manifest(2.0, 2.0, 4.0004)}))
    assert "damaged" in opening(archived(saved, {**end, **manifest(9.0), "checkpoints/000000009000.safetensors": b""}))
    for wrong in (None, "2", math.nan, 1e999, -1.0, True, [2.0]):
        assert "damaged" in opening(archived(saved, {**good, **manifest(2.0, wrong)}))
    for data in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        assert opening(archived(saved, {**good, "manifest.json": data}))
    with warnings.catch_warnings(), zipfile.ZipFile(archived(saved, good), "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("memory.safetensors", good["memory.safetensors"])
    assert "damaged" in opening(saved)
    archived(saved, {**good, first: good[second]})
    with MemoryFile(saved) as file, pytest.raises(ConfigError, match="damaged"):
        file.before(3.0)


def test_sizes_that_are_only_said_are_not_taken(saved: Path):
    data = bytearray(saved.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 20 : at + 28] = (0xF0000000).to_bytes(4, "little") * 2
    saved.write_bytes(data)
    tracemalloc.start()
    try:
        assert "damaged" in opening(saved)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("whole")
    with earlier(directory / "c", 2.0) as checkpoints:
        write(directory / "x.kvv", memory(), checkpoints)
    return (directory / "x.kvv").read_bytes()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_refused_or_the_same(whole: bytes, data: st.DataObject):
    content = data.draw(damaged(whole) | st.binary(max_size=200).map(lambda tail: b"PK\x03\x04" + tail))
    with tempfile.NamedTemporaryFile(suffix=".kvv") as file:
        file.write(content)
        file.flush()
        try:
            with MemoryFile(file.name) as found:
                early = found.before(3.0)
                late = found.memory()
        except ConfigError as error:
            one_line(error)
        else:
            assert same(early, memory(2.0, seed=2))
            assert same(late, memory())


@given(value=JSON, key=st.sampled_from(["format", "version", "checkpoints"]) | st.text())
@settings(max_examples=100, deadline=None)
def test_a_manifest_of_other_types_is_refused(whole: bytes, value: object, key: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.kvv")
        path.write_bytes(whole)
        archived(path, {**members(path), **manifest(2.0, **{key: value})})
        try:
            with MemoryFile(path) as file:
                assert file.times == [2.0, 8.0]
        except ConfigError as error:
            one_line(error)


def test_a_full_disk_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left on device; free some space") as caught:
            write(saved, memory(16.0))
    assert str(saved) in one_line(caught.value)
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["checkpoints", "x.kvv"]


@pytest.mark.skipif(not Path(os.devnull).with_name("full").exists(), reason="needs a device that is full")
def test_a_disk_that_fills_up_while_writing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    device = str(Path(os.devnull).with_name("full"))

    def opened(path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115  the caller closes it
        if mode != "xb":
            return file
        file.close()
        return open(device, "r+b", 0)

    monkeypatch.setattr("kvvideo.storage.disk.open", opened, raising=False)
    with pytest.raises(ConfigError, match="No space left on device"):
        write(tmp_path / "x.kvv", memory())
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_named(saved: Path):
    for path in (saved / "x.kvv", saved.with_name("missing") / "x.kvv", saved.parent / "checkpoints"):
        with pytest.raises(ConfigError, match=f"{path.name}' cannot be written: .*; choose a place that can be"):
            write(path, memory())
    assert sorted(path.name for path in saved.parent.iterdir()) == ["checkpoints", "x.kvv"]


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path):
    with pytest.raises(ConfigError, match="this memory cannot be saved"):
        write(tmp_path / "x.kvv", replace(memory(), live=9))
    assert not [*tmp_path.iterdir()]


def test_a_writer_that_lives_keeps_its_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_one = codec.write

    def nested(saved: Memory, stream: Any) -> None:
        monkeypatch.setattr(codec, "write", write_one)
        write(tmp_path / "b.kvv", memory(4.0))
        write_one(saved, stream)

    monkeypatch.setattr(codec, "write", nested)
    write(tmp_path / "a.kvv", memory())
    for name, end in (("a.kvv", 8.0), ("b.kvv", 4.0)):
        with MemoryFile(tmp_path / name) as file:
            assert same(file.memory(), memory(end))


def killed(child: Callable[[int], None], after: Callable[[], int], kills: int, seed: int) -> None:
    """Forks ``child``, given where the last one came to, and kills it at any moment; ``kills`` times."""
    reached, moments = 0, random.Random(seed)
    for _ in range(kills):
        pid = os.fork()
        if not pid:
            try:
                child(reached)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0.005, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        now = after()
        assert now >= reached
        reached = now
    assert reached


def in_new_process(function: str, folder: Path) -> None:
    """Runs ``module.function(folder)`` where there are no threads, so that it may fork."""
    module, _, name = function.rpartition(".")
    code = f"import sys, {module}; {module}.{name}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, timeout=300)


def kill_writers(folder: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder, "x.kvv")

    def child(reached: int) -> None:
        for n in range(reached + 1, 10**6):
            write(path, memory(float(n), seed=n, live=2000))

    def after() -> int:
        if not path.exists():
            return 0
        with MemoryFile(path) as file:
            found = file.memory()
        assert same(found, memory(found.end, seed=int(found.end), live=2000))
        return int(found.end)

    killed(child, after, 15, seed=1)
    write(path, memory())
    assert os.listdir(folder) == ["x.kvv"]


@pytest.mark.slow
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path):
    in_new_process("tests.storage.test_memory_file.kill_writers", tmp_path)


def test_files_are_known_by_size_and_samples(tmp_path: Path):
    path = tmp_path / "x.mp4"
    data = bytearray(os.urandom(1 << 20))
    seen = set()
    for place in range(0, 1 << 20, 65521):
        data[place] ^= 1
        path.write_bytes(data)
        seen.add(fingerprint.of_file(path))
    path.write_bytes(data + b"\0")
    seen.add(fingerprint.of_file(str(path)))
    path.write_bytes(b"")
    seen.add(fingerprint.of_file(path))
    assert len(seen) == 19
    assert {len(one) for one in seen} == {32}


def test_little_of_a_large_file_is_read(tmp_path: Path):
    path = tmp_path / "x.mp4"
    seen = set()
    for place in (0, (50 << 30) - 1, (50 << 30) // 2):
        with open(path, "wb") as stream:
            stream.truncate(50 << 30)
            stream.seek(place)
            stream.write(b"\1")
        seen.add(fingerprint.of_file(path))
    assert len(seen) == 3


def test_a_model_is_known_by_its_config_and_weights(tmp_path: Path):
    def files(**content: str) -> str:
        for name, text in content.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return of_model(tmp_path)

    first = files(config_json='{"a": 1, "b": [2]}', model_safetensors="x")
    assert files(config_json='{"b":[2],\n"a":1}', README_md="z") == first
    assert of_model(tmp_path, "bfloat16") != first
    seen = {first, files(config_json='{"b":[2], "a":2}'), files(model_safetensors="y"), files(extra_bin="x")}
    assert len(seen) == 4


def test_what_has_no_fingerprint_is_named(tmp_path: Path):
    cases: list[tuple[type[KvvideoError], Callable[[Path], str], Path, str]] = [
        (VideoError, fingerprint.of_file, tmp_path / "missing.mp4", "No such file"),
        (VideoError, fingerprint.of_file, tmp_path, "not a file"),
        (ConfigError, of_model, tmp_path, "config.json' cannot be read: No such file"),
        (ConfigError, of_model, tmp_path / "missing", "cannot be read: No such file"),
    ]
    for error, function, path, words in cases:
        with pytest.raises(error, match=words) as caught:
            function(path)
        assert str(path) in one_line(caught.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        of_model(tmp_path)
