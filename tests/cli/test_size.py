"""The size of the cache: said by ``--memory``, by exact settings from anywhere, or by the run that is gone on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvvideo.bench.shapes import directory
from kvvideo.cli import analyze, batch, chat, find, ingest
from kvvideo.runs import ingest as making
from kvvideo.session import EngineConfig, allowance
from kvvideo.session.allowance import CPU_SHARE, bytes_for
from tests.helpers import SAMPLES
from tests.helpers.commands import Run
from tests.helpers.places import Places

CLIP = str(SAMPLES / "letters-1m.mp4")
TINY = ("-m", "tiny", "--recall", "0")

pytestmark = pytest.mark.usefixtures("places")


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have this machine as much memory free as ``auto`` takes for so many tokens of the bundled model."""
    monkeypatch.setattr(torch.version, "cuda", None)

    def say(tokens: int) -> None:
        free = CPU_SHARE * bytes_for(tokens, EngineConfig("tiny", index=False))
        monkeypatch.setattr(allowance, "free_memory", lambda: free)

    return say


def predicted(run: Run, *arguments: str, model: str = "tiny") -> dict[str, Any]:
    ended = run("analyze", CLIP, "-m", model, "--recall", "0", "--dry-run", "-f", "jsonl", *arguments)
    assert ended.returncode == 0, ended.stderr
    (record,) = map(json.loads, ended.stdout.splitlines())
    found: dict[str, Any] = record
    return found


def test_the_bundled_model_keeps_what_it_always_kept(run: Run, has: Callable[[int], None]) -> None:
    has(100_000)
    assert predicted(run)["max_tokens"] == 4096
    assert predicted(run, "--memory", "auto")["max_tokens"] == 4096
    has(1024)
    assert predicted(run)["max_tokens"] == 1024


def test_a_wish_is_used_up_and_no_more(run: Run, has: Callable[[int], None]) -> None:
    has(100_000)
    config = EngineConfig("tiny", index=False)
    found = predicted(run, "--memory", "90MB")["max_tokens"]
    assert bytes_for(found, config) <= 90 * 10**6 < bytes_for(found + 32, config)
    assert predicted(run, "--memory", "90MB", "-s", "full")["max_tokens"] is None


def test_a_real_model_is_given_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(allowance, "free_gpu_memory", lambda: [24 << 30])
    assert predicted(run, model=str(directory("7b")))["max_tokens"] == 16_384


def test_what_is_exact_wins_wherever_it_is_said(run: Run, monkeypatch: pytest.MonkeyPatch, places: Places) -> None:
    assert predicted(run, "--max-tokens", "512", "--memory", "90MB")["max_tokens"] == 512
    places.write("max-tokens = 640\n")
    assert predicted(run)["max_tokens"] == 640
    # A wish that is set nearer puts it out of force.
    assert predicted(run, "--memory", "90MB")["max_tokens"] > 4096
    monkeypatch.setenv("KVVIDEO_MAX_TOKENS", "768")
    places.write('memory = "90MB"\n')
    assert predicted(run)["max_tokens"] == 768
    monkeypatch.delenv("KVVIDEO_MAX_TOKENS")
    assert predicted(run)["max_tokens"] > 4096
    # A budget beyond the default needs as much room as the ratio says.
    assert predicted(run, "--budget", "5000")["max_tokens"] == 10_000


REFUSED = {
    "no size": (("--memory", "much"), "memory: 'much' is not a size"),
    "too little": (("--memory", "1MB"), "memory: 1MB is too little for a chunk of up to 96 tokens"),
    "too much": (("--memory", "900000GB"), "memory: 900000GB do not fit this machine beside 'tiny'; "),
    "longer than requests": (
        ("--max-tokens", "20000", "--max-model-len", "16384"),
        "max_tokens: a cache of 20000 tokens and a chunk of up to 96 are more than max_model_len=16384; use at most 1",
    ),
    "longer than the model takes": (("--max-tokens", "100000"), "the 32768 tokens that 'tiny' takes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    run: Run, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("it went on")

    for command in (analyze, ingest, find):
        monkeypatch.setattr(command, "_run", loads)
    arguments, says = REFUSED[case]
    for words in (("analyze", CLIP, "-q", "x"), ("ingest", CLIP), ("find", CLIP, "x"), ("analyze", CLIP, "--dry-run")):
        ended = run(*words, "-m", "tiny", *arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert says in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_a_run_goes_on_with_the_memory_it_began_with(
    run: Run, has: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def begun(source: object, config: EngineConfig, caches: list[Any], *rest: Any) -> None:
        found.append((config.cache.max_tokens, [cache.max_tokens for cache in caches], len(rest[-1].batches)))
        rest[-1].append([{"type": "answer", "strategy": "distinct"}])

    monkeypatch.setattr(analyze, "_run", begun)
    ask = ("analyze", CLIP, *TINY, "-q", "x", "--compare", "distinct,window")
    has(1024)
    assert run(*ask).returncode == 0
    has(100_000)
    assert run(*ask, "--resume").returncode == 0
    assert found == [(1024, [1024, 1024], 0), (1024, [1024, 1024], 1)]
    # Without --resume, and with a number, it is another run.
    run(*ask)
    ended = run(*ask, "--max-tokens", "1024", "--resume")
    assert "there is no interrupted run of just this" in ended.stderr
    assert [one[0] for one in found[2:]] == [4096, 1024]


def test_an_ingest_goes_on_with_the_memory_it_began_with(
    run: Run, has: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    found = []

    class Part:
        def __init__(self, output: Path, source: object, cache: Any, *_: object, **__: object) -> None:
            found.append(cache.max_tokens)
            raise SystemExit(0)

    monkeypatch.setattr(making, "Part", Part)
    has(100_000)
    (places.folder / "a.kvv.part").mkdir()
    (places.folder / "a.kvv.part" / "run.json").write_text('{"cache": {"max_tokens": 1024}}')
    words = ("ingest", CLIP, "-m", "tiny", "-o", "a.kvv")
    run(*words)
    run(*words, "--resume")
    run(*words, "--resume", "--max-tokens", "2048")
    assert found == [4096, 1024, 2048]


def test_a_batch_is_the_same_on_all_machines_and_takes_on_what_fits(
    run: Run, has: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    jobs = [{"id": str(n), "video": CLIP, "questions": [{"q": f"{n}?"}], "fps": n} for n in range(1, 5)]
    (places.folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    found = []

    def check(tasks: list[Any], defaults: Any, json_output: bool) -> None:
        engine = defaults.engine
        found.append(({task.cache.max_tokens for task in tasks}, engine.sessions, engine.max_model_len))

    monkeypatch.setattr(batch, "_check", check)
    for tokens in (100_000, 1024):
        has(tokens)
        assert run("batch", "jobs.jsonl", *TINY, "--check").returncode == 0
    assert run("batch", "jobs.jsonl", *TINY, "--check", "--at-once", "3", "--max-tokens", "32000").returncode == 0
    assert found == [({4096}, 4, 32768), ({4096}, 2, 32768), ({32000}, 3, 32768)]


def test_a_chat_takes_what_there_is(run: Run, has: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Opening:
        def __init__(self, config: EngineConfig, _: object, room: int, *__: object) -> None:
            found.append((config.cache.max_tokens, config.spare_rows))
            assert room == 2 * 10**9
            raise SystemExit(0)

    monkeypatch.setattr("kvvideo.chat.opening.Opening", Opening)
    monkeypatch.setattr(chat, "_terminal", lambda: None)
    has(2048)
    run("chat", CLIP, *TINY)
    # Pages have room for what the strategies that it may be switched to carry.
    assert found[0][1] > 0
    assert found[0][0] in (2048, 4096)
    run("chat", CLIP, *TINY, "--max-tokens", "640")
    assert found[1][0] == 640
