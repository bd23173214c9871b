"""``kvvideo serve``: a real server in processes of its own, asked by OpenAI's client, text and video at once."""

import base64
import json
import logging
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import psutil
import pytest
from PIL import Image

from kvvideo.compression.config import FORK_OF, KEY, CacheConfig
from kvvideo.plugin.loader import LOADER
from kvvideo.plugin.server import ServeCommand
from kvvideo.plugin.settings import SCHEDULER
from kvvideo.prompt import OPENING, VIDEO, question_text
from kvvideo.serve.messages import content
from kvvideo.serve.server import Serving, main
from kvvideo.session import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.pool import block_bytes
from kvvideo.tiny.model import MAX_PIXELS, MIN_PIXELS
from kvvideo.types import Chunk
from kvvideo.video import VideoReader
from tests.helpers import SAMPLES, engines
from tests.helpers.clips import H264, Clip, copy
from tests.helpers.commands import command
from tests.helpers.reference import Model, Stream, keep_streaming
from tests.plugin.test_reference import check_generated, feed_chunk, ids

MAX_TOKENS, BUDGET, SINK = 512, 256, 32
CACHE = ("--strategy", "streaming", "--max-tokens", str(MAX_TOKENS), "--budget", str(BUDGET), "--sink", str(SINK))
ON_GPU = ("--enforce-eager", "--attention-backend", str(engines.GPU_OPTIONS["attention_backend"]))
ON_GPU += ("--kv-cache-memory-bytes", "256M", "--gpu-memory-utilization", "0.05")


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as reply:
            return str(reply.read().decode())

    def figures(self) -> dict[str, float]:
        """Return the figures of this model at ``/metrics``, by name."""
        found = re.findall(r'^([\w:]+)\{([^}]*model_name="tiny"[^}]*)\} (\S+)$', self.get("/metrics"), re.M)
        return {name: float(value) for name, _, value in found}

    def wait(self, seconds: float = 400) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with suppress(OSError):
                self.get("/health")
                return
            time.sleep(0.2)
        raise AssertionError(f"not up after {seconds} s: {self.log.read_text()[-3000:]}")


def start(log: Path, *arguments: str, served: Sequence[object] = ("tiny",)) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = command("serve", *served, "--port", port)
    with log.open("wb") as output:
        process = subprocess.Popen([*line, *arguments], stdout=output, stderr=output, start_new_session=True)
    return Server(process, port, log)


def group(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes of the session that ``process`` leads."""
    found = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(one.pid) == process.pid and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


def shared_memory(pid: int) -> list[Path]:
    """Files of the shared memory that a process has mapped and that have a name."""
    found = re.findall(r" (/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    return [Path(path) for path in found if Path(path).exists()]


def end(process: subprocess.Popen[bytes]) -> None:
    for pid in group(process):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def all_gone(process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while group(process):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    # On a busy machine its processes may need longer to end than the five seconds after which they are killed.
    patient = ("--shutdown-timeout", "45")
    started = start(log, *CACHE, *patient, "--dtype", "float32", *(ON_GPU if engines.ON_GPU else ()))
    try:
        started.wait()
        yield started
    finally:
        end(started.process)


def stream_of(model: Model) -> Stream:
    return Stream(model, keep_streaming(SINK), BUDGET, MAX_TOKENS)


def truth(name: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (SAMPLES / "jobs.jsonl").read_text().splitlines())
    return next(line["questions"] for line in lines if line["id"] == name)


def chunks_of(name: str, until: float | None = None) -> list[Chunk]:
    with VideoReader(SAMPLES / f"{name}.mp4", end=until, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS) as reader:
        return list(reader)


def count(computed: int) -> int:
    """Compactions on the way to ``computed`` tokens."""
    live = times = 0
    for _ in range(computed):
        live += 1
        if live == MAX_TOKENS:
            live, times = BUDGET, times + 1
    return times


TEXTS = [(ids(1500, 1), 20), (ids(700, 2), 150), (ids(90, 3), 8), (ids(MAX_TOKENS, 4), 5)]
"""Prompts, and how many tokens are asked for."""


@dataclass(frozen=True)
class Asked:
    """A question about the first part of a sample, in chunks that say their time, with its right answer."""

    sample: str
    until: float | None
    question: str
    answer: str


VIDEOS = [
    Asked("letters-2m", 52.0, "What colour is the letter on screen now?", "green"),
    Asked("letters-2m", None, "When was the letter E on screen?", "not seen"),
    Asked("letters-1m", 20.0, "What color is the letter on screen now?", "purple"),
]


def complete(server: Server, prompt: list[int], tokens: int) -> Any:
    return server.client.completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        logprobs=1,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )


def chat(server: Server, parts: list[dict[str, Any]]) -> Any:
    return server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        logprobs=True,  # type: ignore[list-item,misc]
        extra_body={"return_token_ids": True},
    )


def file_of(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(data).decode()}}


def test_text_and_video_at_once_past_several_compactions(server: Server, reference: Model):
    """All answers are what transformers gives with the same tokens evicted, and every compaction is counted."""
    streams = [(asked, chunks_of(asked.sample, asked.until)) for asked in VIDEOS]
    before = server.figures()
    with ThreadPoolExecutor() as threads:
        texts = [threads.submit(complete, server, *text) for text in TEXTS]
        videos = [threads.submit(chat, server, content(chunks, asked.question)) for asked, chunks in streams]
        said = [one.result() for one in [*texts, *videos]]
    after = server.figures()

    compactions = freed = 0
    for result in said:
        # The last token is said and not computed; until it is begun, blocks of the last compaction are not needed.
        computed = result.usage.prompt_tokens + result.usage.completion_tokens - 1
        compactions, freed = compactions + count(computed), freed + count(computed - 1)
    assert compactions >= 15
    grown = {name: after[name] - before[name] for name in after}
    assert grown["kvvideo_compactions_total"] == compactions
    assert grown["kvvideo_evicted_tokens_total"] == compactions * (MAX_TOKENS - BUDGET)
    assert grown["kvvideo_freed_blocks_total"] == freed * (MAX_TOKENS - BUDGET) / engines.BLOCK
    assert grown["vllm:prompt_tokens_total"] == sum(result.usage.prompt_tokens for result in said)
    assert grown["vllm:num_preemptions_total"] == 0
    assert after["kvvideo_live_tokens"] == after["kvvideo_sessions"] == 0

    for (prompt, _), result in zip(TEXTS, said, strict=False):
        choice, stream = result.choices[0], stream_of(reference)
        stream.feed(reference.tokens(prompt))
        check_generated(stream, choice.token_ids, choice.logprobs.token_logprobs)
    for (asked, chunks), result in zip(streams, said[len(TEXTS) :], strict=True):
        choice, stream = result.choices[0], stream_of(reference)
        assert choice.message.content == asked.answer
        for index, chunk in enumerate(chunks):
            feed_chunk(stream, chunk, first=index == 0)
        stream.feed(reference.tokens(question_text(asked.question)))
        assert stream.seen == result.usage.prompt_tokens
        check_generated(stream, choice.token_ids, [token.logprob for token in choice.logprobs.content])


def test_the_questions_are_those_of_the_truth():
    for asked in VIDEOS:
        assert asked.answer in [q["answer"] for q in truth(asked.sample) if q["q"] == asked.question]


def test_a_whole_file(server: Server, reference: Model, monkeypatch: pytest.MonkeyPatch, model_dir: str):
    """The frames it looks at, how large it makes them and how it spaces them in time are what ``analyze`` takes."""
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    question = "What colour is the letter on screen now?"
    data = (SAMPLES / "letters-1m.mp4").read_bytes()
    result = chat(server, [file_of(data), {"type": "text", "text": f"\n{question}"}])
    frames = np.concatenate([chunk.frames for chunk in chunks_of("letters-1m")])
    assert len(frames) == 60 * 2
    monkeypatch.setattr(reference, "video", Qwen2VLVideoProcessor.from_pretrained(model_dir))
    stream = stream_of(reference)
    stream.feed(reference.tokens(OPENING + VIDEO + question_text(question), frames, 2.0))
    assert stream.seen == result.usage.prompt_tokens
    assert stream.compactions == 2
    choice = result.choices[0]
    check_generated(stream, choice.token_ids, [token.logprob for token in choice.logprobs.content])


def odd_files(directory: Path) -> dict[str, bytes]:
    """Videos that say little of themselves: one frame; no length and no number of frames; an animated picture."""
    size = (112, 84)
    one = Clip("one.mp4", frames=1, rate=10, size=size, options=H264)
    recorded = Clip("rec.webm", frames=80, rate=10, size=size, codec="libvpx", container={"live": "1"})
    moving = Clip("anim.png", frames=40, rate=10, size=size, codec="apng", format="apng", pixels="rgb24")
    for clip in (one, recorded, moving):
        clip.write(directory / clip.name)
    with av.open(str(directory / recorded.name)) as file:
        assert file.duration is None
        assert file.streams.video[0].frames == 0
    return {clip.name: (directory / clip.name).read_bytes() for clip in (one, recorded, moving)}


def test_files_that_say_little_of_themselves(server: Server, reference: Model, tmp_path: Path):
    """The model is shown as many tokens as ``analyze`` would show it of them."""
    question = question_text("What?")
    for name, data in odd_files(tmp_path).items():
        with VideoReader(tmp_path / name, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS) as reader:
            frames = np.concatenate([chunk.frames for chunk in reader])
        assert len(frames) == {"one.mp4": 2, "rec.webm": 16, "anim.png": 8}[name]
        result = chat(server, [file_of(data), {"type": "text", "text": "\nWhat?"}])
        tokens = reference.tokens(OPENING + VIDEO + question, frames, 2.0)
        stream = stream_of(reference)
        stream.feed(tokens)
        assert stream.seen == result.usage.prompt_tokens, name
        choice = result.choices[0]
        check_generated(stream, choice.token_ids, [token.logprob for token in choice.logprobs.content])


def test_a_request_does_not_choose_its_decoder(server: Server):
    """Nor how much is decoded of its video: vLLM leaves that to who serves, unless told to trust."""
    parts = [file_of((SAMPLES / "letters-1m.mp4").read_bytes()), {"type": "text", "text": "\nWhat?"}]
    for video in ({"video_backend": "opencv"}, {"fps": 8}):
        with pytest.raises(openai.BadRequestError, match="--trust-request-mm-kwargs"):
            server.client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
                extra_body={"media_io_kwargs": {"video": video}},
            )


def test_what_cannot_be_decoded_is_refused_with_the_reason(server: Server, tmp_path: Path):
    """A request of a stranger's file is answered with why, and with no name of a file of this machine."""
    picture = BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "png")
    sample = (SAMPLES / "letters-1m.mp4").read_bytes()
    for data, reason in (
        (b"no video", "the file is not a video that FFmpeg can read"),
        (b"", "the file is empty"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "the file is not a video that FFmpeg can read"),
        (picture.getvalue(), "the file is an image or text, not a video"),
        (
            copy(SAMPLES / "letters-1m.mp4", tmp_path / "cut.mkv").read_bytes()[: len(sample) // 2],
            "the file is cut short",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, [file_of(data), {"type": "text", "text": "\nWhat?"}])
        said = caught.value.body["message"]  # type: ignore[index]
        assert reason in said
        assert "/proc" not in said
        assert len(said.splitlines()) == 1
    assert complete(server, ids(20), 2).usage.completion_tokens == 2


def test_what_is_held_shows_while_it_is(server: Server):
    """A client that goes away leaves nothing behind."""
    words = server.client.completions.create(
        model="tiny", prompt=ids(600, 5), max_tokens=20_000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(words))
    held = server.figures()["kvvideo_live_tokens"]
    assert BUDGET <= held < MAX_TOKENS
    words.close()
    until = time.monotonic() + 60
    while server.figures()["kvvideo_live_tokens"]:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_its_name_and_settings(server: Server):
    assert [model.id for model in server.client.models.list().data] == ["tiny"]
    assert (
        f'kvvideo_cache_info{{budget="{BUDGET}",engine="0",max_tokens="{MAX_TOKENS}",model_name="tiny",'
        'positions="absolute",strategy="streaming"} 1.0\n'
    ) in server.get("/metrics")
    # This machine has other addresses; it does not listen there.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_bad_requests_are_refused_and_it_lives_on(server: Server):
    with pytest.raises(openai.BadRequestError, match="32768"):
        complete(server, [100] * 40_000, 1)
    with pytest.raises(openai.APIStatusError, match="allowed-local-media-path"):
        chat(server, [{"type": "video_url", "video_url": {"url": (SAMPLES / "letters-1m.mp4").as_uri()}}])
    with pytest.raises(openai.APIStatusError):  # a question about a session that there is not
        server.client.completions.create(
            model="tiny", prompt="What?", max_tokens=1, extra_body={"vllm_xargs": {FORK_OF: "nobody"}}
        )
    assert complete(server, ids(20), 2).usage.completion_tokens == 2


def test_ctrl_c_ends_it_and_all_it_started(server: Server):
    shared = {path for one in group(server.process) for path in shared_memory(one)}
    assert len(group(server.process)) >= 2
    said = len(server.log.read_text())
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(timeout=60) == 0
    all_gone(server.process)
    assert not re.search("^Traceback|leaked", server.log.read_text()[said:], re.MULTILINE)
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
def test_ctrl_c_while_loading(tmp_path: Path):
    loading = start(tmp_path / "log")
    try:
        until = time.monotonic() + 300
        while "kvvideo: serving tiny at http://127.0.0.1:" not in loading.log.read_text():
            assert loading.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.killpg(loading.process.pid, signal.SIGINT)
        assert loading.process.wait(timeout=60) == 130
        assert "Traceback" not in loading.log.read_text()
        all_gone(loading.process)
    finally:
        end(loading.process)


@pytest.mark.slow
def test_told_to_end_while_its_engine_loads(tmp_path: Path):
    loading = start(tmp_path / "log")
    try:
        until = time.monotonic() + 300
        while not any("VLLM::Engine" in " ".join(psutil.Process(one).cmdline()) for one in group(loading.process)):
            assert loading.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        loading.process.terminate()
        assert loading.process.wait(timeout=60) == 130
        assert "Traceback" not in loading.log.read_text()
        all_gone(loading.process)
    finally:
        end(loading.process)


@pytest.fixture
def environment() -> Iterator[None]:
    """Take out again what vLLM's command line writes into it, and let its log go where it went."""
    import vllm.entrypoints.cli.serve  # noqa: F401

    before, handlers = dict(os.environ), [*logging.getLogger("vllm").handlers]
    yield
    os.environ.clear()
    os.environ.update(before)
    logging.getLogger("vllm").handlers[:] = handlers


def serve(*arguments: str, model: str = "tiny", memory: int | None = None, **cache: Any) -> None:
    """The body of the server's process, here."""
    main(Serving(model, CacheConfig(**cache), memory=memory).command([*arguments])[3:])


NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3})


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--enable-prefix-caching"], ["prefix caching", "--no-enable-prefix-caching"]),
        (["--scheduler-cls", "a.B"], ["the scheduler is a.B", "SessionScheduler"]),
        (["--kv-cache-dtype", "fp8"], ["fp8 KV cache", "--kv-cache-dtype auto"]),
        (["--speculative-config", NGRAM], ["speculative decoding", "--speculative-config"]),
        (["--additional-config", '{"kvvideo": {"max_tokens": 64}}'], ["additional-config", "--max-tokens"]),
        (["--additional-config.kvvideo.max_tokens", "64"], ["additional-config", "--max-tokens"]),
        (["--max-tokns", "64"], ["unrecognized arguments: --max-tokns 64", "--help=all"]),
        (["--port", "70000"], ["port 70000", "--port"]),
        (["--host", "192.0.2.1"], ["192.0.2.1", "--host"]),
        (["--max-model-len", "99999999"], ["max_model_len (99999999)"]),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        serve(*arguments)
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvvideo: ")]
    assert all(word in line for word in words), line


@pytest.mark.usefixtures("environment")
def test_memory_is_the_room_of_all_requests(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """It holds one at its largest; and vLLM's own option stands, as all of them."""
    found = []
    monkeypatch.setattr(ServeCommand, "run", lambda _, args: found.append(args.kv_cache_memory_bytes))
    config = EngineConfig("tiny", CacheConfig(max_tokens=512), "float32")
    least = (512 // 32 + 2) * block_bytes(model_path("tiny"), config, 32)
    settings = ("--block-size", "32", "--dtype", "float32", "--port", "0")
    with pytest.raises(SystemExit):
        serve(*settings, memory=least - 1, max_tokens=512)
    says = f"is too little for a request of 512 tokens; use at least {-(-least // 10**6)}MB, or a smaller --max-tokens"
    assert says in capsys.readouterr().err
    serve(*settings, memory=least, max_tokens=512)
    serve(*settings, "--kv-cache-memory-bytes", str(2 * least), memory=least, max_tokens=512)
    assert found == [least, 2 * least]


@pytest.mark.usefixtures("environment")
def test_a_port_in_use(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit):
        serve("--port", str(other.getsockname()[1]))
    assert "in use; name another with --port" in capsys.readouterr().err


@pytest.mark.usefixtures("environment")
def test_a_file_of_settings_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "vllm.yaml").write_text("enable-prefix-caching: true\n")
    with pytest.raises(SystemExit):
        serve("--config", str(tmp_path / "vllm.yaml"))
    assert "prefix caching" in capsys.readouterr().err


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("content", "word"), [(None, "cannot load model"), ({"model_type": "qwen2"}, "qwen2 model")])
def test_models_that_are_none(
    tmp_path: Path, content: dict[str, Any] | None, word: str, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        serve(model=str(tmp_path))
    assert word in capsys.readouterr().err


@pytest.mark.usefixtures("environment")
def test_what_is_said_explicitly_stands(monkeypatch: pytest.MonkeyPatch, model_dir: str, tmp_path: Path):
    """Unsaid, it is safe: only this machine reaches it, no files, no code of a model's, no cache that would break."""
    given: list[Any] = []
    monkeypatch.setattr(ServeCommand, "run", lambda command, args: given.append(args))
    (tmp_path / "vllm.yaml").write_text("host: 0.0.0.0\n")
    serve("--port", "0", max_tokens=1024)
    serve(
        "--port",
        "0",
        "--served-model-name",
        "other",
        "--additional-config",
        '{"x": 1}',
        "--max-num-seqs",
        "3",
        "--config",
        str(tmp_path / "vllm.yaml"),
        "--mm-processor-kwargs",
        "{}",
        "--media-io-kwargs",
        '{"video": {"fps": 1}, "image": {}}',
        model=model_dir,
    )
    plain, other = given
    assert (plain.host, other.host) == ("127.0.0.1", "0.0.0.0")
    assert (plain.served_model_name, other.served_model_name) == (["tiny"], ["other"])
    assert plain.model == other.model == model_dir
    assert plain.additional_config[KEY]["max_tokens"] == 1024
    frames = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    assert plain.media_io_kwargs == {"video": {"video_backend": LOADER, "num_frames": -1, "fps": 2.0, **frames}}
    assert other.media_io_kwargs == {"video": {"video_backend": LOADER, "fps": 1}, "image": {}}
    assert set(other.additional_config) == {KEY, "x"}
    assert other.mm_processor_kwargs == {}
    for args in given:
        assert not any([args.trust_remote_code, args.allowed_local_media_path, args.enable_prefix_caching])
        assert args.scheduler_cls == SCHEDULER
    if not engines.ON_GPU:
        # As many requests as are computed at once fit, each at its largest: none is ever preempted.
        small, large = plain.kv_cache_memory_bytes / (16 * 33 + 1), other.kv_cache_memory_bytes / (3 * 129 + 1)
        assert small == large == block_bytes(model_dir, EngineConfig(model_dir), 32)


def test_the_command_line_refuses_what_it_can_by_itself():
    for arguments, word in ((["--port", "8000", "tiny"], "the model comes first"), (["tiny", "--ratio", "2"], "ratio")):
        line = command("serve", *arguments)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1
