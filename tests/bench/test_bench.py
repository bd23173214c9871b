"""Benches of speed: rivals do the same work, and reports are whole."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kvvideo.bench import operations, shapes
from kvvideo.bench.frames import Frames
from kvvideo.bench.race import Row, ratios
from kvvideo.bench.rivals import RIVALS, Kvvideo, Over, Rival, Transformers, open_rivals
from kvvideo.bench.shapes import shaped
from kvvideo.bench.spans import Spans
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.prompt import question_text
from kvvideo.session import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import model_config, text_config
from kvvideo.session.pool import page_bytes
from kvvideo.types import Chunk
from tests.helpers.commands import kvvideo

CHUNKS = 5
CONFIG = EngineConfig(
    model="tiny", dtype="float32", max_model_len=2048, questions=2, cache=CacheConfig(max_tokens=128, sink=20)
)


@pytest.fixture(scope="module")
def field() -> Iterator[dict[str, Rival]]:
    """All rivals, which have seen the same stream, in room for a chunk more and no second."""
    frames = Frames(CONFIG)
    with ExitStack() as closing:
        found, left_out = open_rivals(CONFIG, RIVALS, CHUNKS, frames.tokens + 32, closing)
        assert not left_out
        for number in range(CHUNKS):
            for rival in found:
                rival.ingest(frames.chunk(number))
        yield {rival.name: rival for rival in found}


@pytest.mark.slow
def test_transformers_holds_what_kvvideo_holds(field: dict[str, Any]) -> None:
    """The same tokens in every layer and head, and so the same keys: it is the same work."""
    ours: Kvvideo = field["kvvideo"]
    theirs: Transformers = field["transformers"]
    stats = ours.session.stats()
    assert stats.compactions > 1
    assert theirs.seen == stats.seen
    assert theirs.live == stats.live
    positions = torch.stack([note[0] for note in theirs.notes]).cpu().numpy()
    assert np.array_equal(positions, ours.session._live_positions())
    assert theirs.held_bytes < ours.held_bytes  # which are whole blocks, and have side state


@pytest.mark.slow
def test_all_see_the_same_words(field: dict[str, Any]) -> None:
    assert len({rival.seen for rival in field.values()}) == 1
    per_token = field["vllm-session"].plain.token_bytes
    text = text_config(model_path("tiny"))
    assert per_token == page_bytes(text, 32, 4, 0) * text.num_hidden_layers // 32
    assert field["resend"].held_bytes == field["resend"].seen * per_token


def test_a_question_leaves_kvvideo_and_transformers_as_they_were(field: dict[str, Any]) -> None:
    theirs: Transformers = field["transformers"]
    before = field["kvvideo"].session.stats(), theirs.seen, theirs.live, theirs.held_bytes
    question = "Which letter is on screen now?"
    answer = field["kvvideo"].session.ask(question, max_tokens=1)
    assert theirs._feed(question_text(question), None) == answer.token_ids[0]
    assert all(rival.ask(question) > 0 for rival in field.values())
    assert (field["kvvideo"].session.stats(), theirs.seen, theirs.live, theirs.held_bytes) == before


def test_the_uncompressed_end_where_their_room_does(field: dict[str, Any]) -> None:
    frames = Frames(CONFIG)
    for name in ("vllm-session", "resend"):
        rival = field[name]
        with pytest.raises(Over, match="tokens are all that the model takes"):
            ingest_without_end(rival, frames)
        assert rival.seen < rival.plain.limit
    field["kvvideo"].ingest(frames.chunk(CHUNKS))


def ingest_without_end(rival: Any, frames: Frames) -> None:
    if rival.name == "resend":
        rival.seen = rival.plain.limit - 1  # the engine takes no more videos than it was made for
    for number in range(CHUNKS, 200):
        rival.ingest(frames.chunk(number))


def test_no_two_chunks_are_the_same() -> None:
    """Otherwise vLLM would not look at them twice."""
    frames = Frames(CONFIG)
    seen = {frames.chunk(number, viewer).frames.tobytes() for number in range(300) for viewer in range(4)}
    assert len(seen) == 1200
    later: Chunk = frames.chunk(7)
    assert (later.start, later.end, later.times[1]) == (28.0, 32.0, 28.5)


def test_unknown_rivals_and_strategies_that_show_queries() -> None:
    with ExitStack() as closing, pytest.raises(ConfigError, match=r"no 'me'; choose from kvvideo"):
        open_rivals(CONFIG, ["me"], 1, 1, closing)
    with ExitStack() as closing:
        config = EngineConfig(model="tiny", cache=CacheConfig(strategy="h2o"))
        found, left_out = open_rivals(config, ["transformers"], 1, 1, closing)
    assert not found
    assert "h2o" in left_out[0]


def test_ratios() -> None:
    def row(rival: str, chunks: int, ms: float, mean: float) -> Row:
        return Row(rival, chunks, ms, mean, 0.0, None, 0, 0)

    rows = [
        row("kvvideo", 10, 20.0, 25.0),
        row("vllm-session", 10, 22.0, 30.0),
        row("resend", 10, 50.0, 50.0),
        row("kvvideo", 30, 44.0, 25.0),
        row("vllm-session", 30, 90.0, 100.0),
    ]
    assert ratios(rows) == {"vllm-session": 4.0, "vllm-session at first": 0.5, "resend": 2.0}


@pytest.mark.parametrize(("shape", "parameters", "token_bytes"), [("3b", 3.09e9, 36864), ("7b", 7.62e9, 57344)])
def test_shapes_are_those_of_the_published_models(shape: str, parameters: float, token_bytes: int) -> None:
    """Parameters of the language model as the cards of Qwen2.5 3B and 7B say, and bytes a token in bfloat16."""
    text = text_config(str(shapes.directory(shape)))
    hidden, size = text.hidden_size, text.hidden_size // text.num_attention_heads
    heads, kv = text.num_attention_heads * size, text.num_key_value_heads * size
    layer = hidden * (heads + 2 * kv) + heads + 2 * kv + heads * hidden + 3 * hidden * text.intermediate_size
    count = text.num_hidden_layers * (layer + 2 * hidden) + hidden
    count += text.vocab_size * hidden * (1 if text.tie_word_embeddings else 2)
    assert count == pytest.approx(parameters, rel=0.005)
    assert page_bytes(text, 16, 2, 0) * text.num_hidden_layers // 16 == token_bytes
    assert model_config(str(shapes.directory(shape))).vision_config.out_hidden_size == hidden


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="no '70b'; choose one of 3b, 7b"):
        shapes.directory("70b")


def test_spans_count_what_is_inside_once() -> None:
    class Thing:
        def outer(self) -> int:
            return self.inner() + self.inner()

        def inner(self) -> int:
            return sum(range(20_000))

    thing, spans = Thing(), Spans()
    for method in ("outer", "inner", "missing"):
        spans.add(method, thing, method)
    with spans, spans.span("all"):
        assert thing.outer() == 2 * thing.inner()
    assert spans.calls == {"inner": 3, "outer": 1, "all": 1}
    assert all(seconds >= 0 for seconds in spans.seconds.values())
    assert not vars(thing)
    thing.outer()
    assert spans.calls["outer"] == 1


def report(*arguments: str) -> dict[str, Any]:
    result: subprocess.CompletedProcess[str] = kvvideo("bench", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["bench"] == arguments[0]
    assert found["machine"]["torch"]
    return found


def test_bench_ask_reports() -> None:
    found = report("ask", "-n", "2,5", "--questions", "2", "--against", "kvvideo,transformers", "--max-tokens", "128")
    assert (found["frames"], found["chunk_seconds"]) == (8, 4.0)
    assert [(row["rival"], row["chunks"]) for row in found["rows"]] == [
        ("kvvideo", 2),
        ("transformers", 2),
        ("kvvideo", 5),
        ("transformers", 5),
    ]
    for row in found["rows"]:
        assert min(row["ms"], row["mean_ms"], row["frames_per_second"], row["first_token_ms"], row["held_bytes"]) > 0
    assert [*found["ratios"]] == ["transformers"]
    assert found["limit"]["ratios"]["transformers"] > 1


@pytest.mark.slow
def test_bench_compaction_reports_in_words() -> None:
    result = kvvideo("bench", "compaction", "-s", "distinct,h2o", "--cycles", "1", "--max-tokens", "256")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["distinct", "h2o"]
    assert float(lines[1].split()[3]) == 0.0  # it does not watch queries
    assert float(lines[2].split()[3]) > 0.0
    assert "attention received from 64 queries" in result.stdout


@pytest.mark.slow
def test_bench_profile_accounts_for_all_time() -> None:
    found = report("profile", "--cycles", "1", "--max-tokens", "256", "-s", "snapkv", "--chunk", "6")
    assert (found["frames"], found["chunk_seconds"]) == (12, 6.0)
    assert sum(found["parts"].values()) == pytest.approx(found["ms_watched"], abs=0.02)
    assert {"vision tower", "attention", "compaction", "watching queries", "all else"} <= found["parts"].keys()
    assert all(ms >= 0 for ms in found["parts"].values())
    assert 0 < found["ours_share"] < 1
    assert all(0 < least <= found["parts"][name] for name, least in found["least_ms"].items())
    assert len(found["least_ms"]) == 3


@pytest.mark.slow
def test_bench_decode_reports() -> None:
    found = report(
        "decode", "--seconds", "40", "--size", "320x180", "--repeats", "1", "--ingest", "--max-tokens", "512"
    )
    assert [row["decoder"] for row in found["decoders"]] == ["pyav", "decord"]
    for row in found["decoders"]:
        assert row["times_real_time"] > 0
        assert row["peak_mb"] > 10 or not Path("/proc").exists()
    assert [row["decoder"] for row in found["fed"]] == ["pyav", "decord"]
    for row in found["fed"]:
        both = row["worked_seconds"] + row["waited_seconds"]
        assert row["busy"] == pytest.approx(row["worked_seconds"] / both, abs=0.01)
        assert 40 / both == pytest.approx(row["times_real_time"], rel=0.02)
        assert row["times_real_time"] <= row["engine_times_real_time"]


def test_operations_are_those_that_are_computed() -> None:
    """Counted by torch in transformers' model, and by the makers of the large ones (arXiv 2412.15115, table 1)."""
    from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

    # Eager attention, for torch counts that alone: as products of batches, of which rotation has some too.
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_path("tiny"), attn_implementation="eager").eval()

    def counts(action: Callable[[], object]) -> tuple[int, int]:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            action()
        found = counter.get_flop_counts()["Global"]
        batched = sum(count for name, count in found.items() if "bmm" in str(name))
        return sum(found.values()) - batched, batched

    def feeding(held: int) -> tuple[int, int]:
        cache = DynamicCache(config=model.config.text_config)
        feed = partial(model.model.language_model, past_key_values=cache)
        with torch.inference_mode():
            feed(inputs_embeds=torch.zeros(1, held - 7, 256))
        return counts(lambda: feed(inputs_embeds=torch.zeros(1, 7, 256)))

    config = EngineConfig("tiny")
    few, many = (operations.of_chunk(config, 7, 20, held) for held in (30, 50))
    pixels = torch.zeros(80, 3 * 2 * 14 * 14)
    assert few.vision == counts(lambda: model.model.get_video_features(pixels, torch.tensor([[2, 4, 10]])))[0]
    assert few.language == feeding(30)[0]
    assert many.attention - few.attention == feeding(50)[1] - feeding(30)[1]
    for shape, parameters in (("3b", 2.77e9), ("7b", 6.53e9)):
        language_only = operations.of_chunk(shaped(config, shape), 1, 0, 0)
        assert language_only.all / 2 == pytest.approx(parameters, rel=0.002)


@pytest.mark.slow
def test_bad_options_are_explained() -> None:
    for arguments, words in (
        (("ingest", "-n", "many"), "lengths: 'many'"),
        (("decode", "--size", "big"), "size: 'big'"),
        (("profile", "--shape", "70b"), "shape: no '70b'"),
        (("ask", "--chunk", "3.3"), "use chunks of 3 or 4 s"),
        (("recall", "--minutes", "0"), "minutes: '0'"),
        (("recall", "-s", "full"), "strategies: full"),
        (("stream", "--recall", "4", "--no-index"), "recall: without an index"),
    ):
        result = kvvideo("bench", *arguments)
        assert result.returncode == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr
