"""``kvvideo serve movie.kvv``: a real server in its own process, asked by OpenAI's client and by ``kvvideo ask``."""

import json
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from kvvideo.runs.journal import state_directory
from kvvideo.runs.recall import Looking
from kvvideo.serve.client import Client
from kvvideo.serve.notice import Notice, Shown, identity, settings
from kvvideo.session import EngineConfig
from tests.conftest import EngineFor
from tests.helpers.commands import records, run, untimed
from tests.helpers.looking import CLIP, QUESTION, SHOWN, SMALL, STRATEGY, as_asked, sees
from tests.serve.test_serve import Server, end, start

OTHERS = ("What colour is the letter on screen now?", "When was the letter E on screen?", "Which letter is it?")
MOMENT = "@1:10"
WORDS = (
    "--max-answer-tokens",
    "8",
    "-q",
    QUESTION,
    "-q",
    f"{MOMENT} {QUESTION}",
    *(w for q in OTHERS for w in ("-q", q)),
)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    (path / "clip.mp4").write_bytes(CLIP.read_bytes())
    return path


@pytest.fixture
def with_engines(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> None:
    as_asked(monkeypatch)


@dataclass(frozen=True)
class Wanted:
    """Return the records and the text that ``ask`` prints with an engine of its own."""

    records: list[Record]
    text: str

    def answer(self, question: str, at: float = 120.0) -> Record:
        return next(one for one in self.records if (one.get("question"), one.get("asked_at")) == (question, at))


@pytest.fixture
def memories(folder: Path, with_engines: None, capfd: pytest.CaptureFixture[str]) -> list[Path]:
    """Two memories of the clip, ingested once: one has its frames, too."""
    paths = [folder / "film.kvv", folder / "framed.kvv"]
    for path, more in zip(paths, ((), ("--keep-frames",)), strict=True):
        if not path.exists():
            words = (*SMALL, *STRATEGY, "--checkpoint-every", "30s", "-o", path, *more)
            done = run(capfd, "ingest", folder / "clip.mp4", *words)
            assert done.returncode == 0, done.stderr
    return paths


_wanted: list[Wanted] = []


@pytest.fixture
def wanted(memories: list[Path], capfd: pytest.CaptureFixture[str]) -> Wanted:
    if not _wanted:
        done = run(capfd, "ask", memories[0], "--own-engine", "-f", "jsonl", *WORDS)
        text = run(capfd, "ask", memories[0], "--own-engine", *WORDS)
        assert (done.returncode, text.returncode) == (0, 0), done.stderr
        assert "asked the engine" not in done.stderr + text.stderr
        _wanted.append(Wanted(records(done.stdout), text.stdout))
    return _wanted[0]


_servers: list[Server] = []


@pytest.fixture(scope="module", autouse=True)
def no_server_is_left() -> Iterator[None]:
    yield
    for server in _servers:
        end(server.process)


@pytest.fixture
def server(memories: list[Path], folder: Path) -> Server:
    """A server of both memories, started once."""
    if not _servers:
        _servers.append(start(folder / "log", served=memories))
        _servers[0].wait()
    return _servers[0]


def chat(server: Server, question: str, **more: Any) -> Any:
    extra = {name: more.pop(name) for name in ("at", "n") if name in more}
    return server.client.chat.completions.create(
        model=more.pop("model", "film"), messages=[{"role": "user", "content": question}], extra_body=extra, **more
    )


def evidence(reply: Any) -> Record:
    """Return what an answer says beside its words."""
    found: Record = reply.model_extra
    return found


def same(reply: Any, record: Record) -> None:
    assert reply.choices[0].message.content == record["answer"]
    assert reply.choices[0].finish_reason == record["finish_reason"]
    assert evidence(reply).get("looked_at") == record.get("looked_at")
    assert (evidence(reply)["asked_at"], evidence(reply)["answered_at"]) == (record["asked_at"], record["answered_at"])


def test_answers_are_those_of_an_engine_of_ones_own(server: Server, wanted: Wanted) -> None:
    assert [model.id for model in server.client.models.list().data] == ["film", "framed"]
    for question in (QUESTION, *OTHERS):
        same(chat(server, question), wanted.answer(question))
    assert sees(wanted.answer(QUESTION), SHOWN)
    for at in (70, "1:10"):
        same(chat(server, QUESTION, at=at, seed=3, temperature=0), wanted.answer(QUESTION, 70.0))
    same(chat(server, QUESTION), wanted.answer(QUESTION))
    same(chat(server, QUESTION, model="framed"), wanted.answer(QUESTION))


def test_words_come_as_they_are_said(server: Server, wanted: Wanted) -> None:
    for at, record in ((None, wanted.answer(QUESTION)), (70, wanted.answer(QUESTION, 70.0))):
        chunks = [*chat(server, QUESTION, at=at, stream=True, stream_options={"include_usage": True})]
        words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(words) == record["answer"]
        last, usage = chunks[-2:]
        assert last.choices[0].finish_reason == "stop"
        assert evidence(last)["looked_at"] == record["looked_at"]
        assert usage.usage.completion_tokens == 2


def test_earlier_messages_and_limits(server: Server) -> None:
    """The bundled model knows no dialogue: it is not shown one, and a cut answer says so."""
    talk = [
        ("system", "Be brief."),
        ("assistant", "Hello."),
        ("user", "Hi."),
        ("assistant", "Yes?"),
        ("user", QUESTION),
    ]
    messages: Any = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in talk]
    reply = server.client.chat.completions.create(model="film", messages=messages, max_completion_tokens=1)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 1
    assert evidence(reply)["looked_at"] == evidence(chat(server, QUESTION))["looked_at"]


def test_several_at_once(server: Server, wanted: Wanted, memories: list[Path]) -> None:
    """Both memories are asked, at the end and at moments, by chat and by ``ask``."""
    with ThreadPoolExecutor(12) as threads:
        plain = [(q, threads.submit(chat, server, q, model=m)) for m in ("film", "framed") for q in (QUESTION, *OTHERS)]
        moments = [threads.submit(chat, server, QUESTION, at=70) for _ in range(3)]
        streams = [threads.submit(lambda: [*chat(server, QUESTION, stream=True)]) for _ in range(3)]
    for question, future in plain:
        assert future.result().choices[0].message.content == wanted.answer(question)["answer"]
    for future in moments:
        same(future.result(), wanted.answer(QUESTION, 70.0))
    for stream in streams:
        assert (
            "".join(one.choices[0].delta.content or "" for one in stream.result()) == wanted.answer(QUESTION)["answer"]
        )


def test_ask_uses_it_and_says_so(
    server: Server, wanted: Wanted, memories: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same records and the same text, also from another folder; pictures are in the page."""
    told = f"kvvideo: asked the engine that serves it at http://127.0.0.1:{server.port}\n"
    done = run(capfd, "ask", memories[0], "-f", "jsonl", *WORDS)
    assert (done.returncode, done.stderr) == (0, told)
    assert untimed(records(done.stdout)) == untimed(wanted.records)
    assert json.loads(run(capfd, "ask", memories[0], "-f", "json", *WORDS).stdout)[-1]["answers"] == 5
    text = run(capfd, "ask", memories[0], *WORDS)
    assert text.stdout == wanted.text
    assert text.stderr.startswith(told)
    page = run(capfd, "ask", memories[0], "-o", tmp_path / "page.html", *WORDS)
    assert page.returncode == 0, page.stderr
    html = (tmp_path / "page.html").read_text()
    assert html.count("data:image/jpeg") > 2
    assert all(question in html for question in OTHERS)


def test_an_interrupted_ask_has_no_more_asked(
    server: Server, memories: list[Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers so far are printed, and a last record, as without a server."""
    answered = Client.records

    def interrupted(client: Client, questions: Any, tokens: int) -> Iterator[Record]:
        for number, record in enumerate(answered(client, questions, tokens)):
            if not number:
                os.kill(os.getpid(), signal.SIGINT)
            yield record

    monkeypatch.setattr(Client, "records", interrupted)
    words = [word for at in range(5, 115, 5) for word in ("-q", f"@{at} {QUESTION}")]
    done = run(capfd, "ask", memories[0], "-f", "jsonl", *words)
    *answers, last = records(done.stdout)
    assert done.returncode == 130
    assert (last["status"], last["answers"]) == ("interrupted", len(answers))
    assert 1 <= len(answers) < 22
    assert len(answers) + len(last["unasked"]) == 22
    assert done.stderr.count("not asked: ") == len(last["unasked"])


def test_what_cannot_be_asked_is_refused_as_without(
    server: Server, memories: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for words, says in ((("-q", "@9:00 What?"), "is outside of what is read"), (("-q", "@0:01"), "asks nothing")):
        refused = [run(capfd, "ask", memories[0], *words, *more) for more in ((), ("--own-engine",))]
        assert {(one.returncode, one.stdout, one.stderr) for one in refused} == {(2, "", refused[0].stderr)}
        assert says in refused[0].stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"at": 500}, "is outside of what is read, 0:00 to 2:00"),
        ({"at": "noon"}, "is not a time"),
        ({"max_tokens": 1 << 20}, "max_tokens: an answer is shorter than"),
        ({"n": 2}, "n: Input should be less than or equal to 1"),
        ({"logprobs": True}, "logprobs: True is not possible here"),
        ({"stop": ["."]}, "stop: "),
        ({"question": "word " * 40_000}, "exceeds max_model_len|longer than|refuses this prompt"),
        ({"question": " "}, "it is the question"),
    ],
)
def test_wrong_requests_are_refused_and_it_lives_on(server: Server, more: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        chat(server, more.pop("question", "What?"), **more)
    assert chat(server, "What?").choices[0].finish_reason == "stop"


def test_a_moment_that_is_no_number_is_refused_in_a_line(server: Server) -> None:
    """JSON has no such number, but Python's reads it."""
    asked = {"model": "film", "messages": [{"role": "user", "content": "What?"}], "at": math.nan}
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(url, json.dumps(asked).encode()))
    assert refused.value.code == 400
    message = json.load(refused.value)["error"]["message"]
    assert message == "at: nan is not a moment of any video; give the seconds from its beginning"


def test_clients_that_go_away_are_no_trouble(server: Server, wanted: Wanted) -> None:
    """Before their answer, and in the middle of it."""
    body = json.dumps({"model": "film", "messages": [{"role": "user", "content": QUESTION}], "at": 100})
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall((head + body).encode())
    words = chat(server, QUESTION, stream=True)
    next(iter(words))
    words.close()
    same(chat(server, QUESTION), wanted.answer(QUESTION))
    server.get("/health")


def posted(path: Path, url: str) -> Any:
    """Let a server be found that is none of ours."""
    made = settings(EngineConfig(), Looking(), None, None, None)
    return Notice(url, "secret", made, [Shown("film", identity(path), "streaming", None, [])]).posted(print)


class Dying(BaseHTTPRequestHandler):
    """Gives the first two records, then hangs up."""

    answers: list[Record]

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        for record in self.answers[:2]:
            self.wfile.write(json.dumps(record).encode() + b"\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("dying", [False, True])
def test_a_server_that_cannot_be_asked_is_done_without(
    dying: bool,
    wanted: Wanted,
    memories: list[Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each record is there once, whether it hangs up in the middle or was never there."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Dying) as http:
        Dying.answers = wanted.records
        url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.handle_request)
        if dying:
            thread.start()
        else:
            http.server_close()
        with posted(memories[0], url):
            done = run(capfd, "ask", memories[0], "-f", "jsonl", *WORDS)
        if dying:
            thread.join()
    assert done.returncode == 0
    assert untimed(records(done.stdout)) == untimed(wanted.records)
    assert f"the engine that serves it at {url} cannot be asked: " in done.stderr


def test_what_one_engine_cannot_have_is_refused_before_it_is_loaded(
    memories: list[Path], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = folder / "other.kvv"
    done = run(capfd, "ingest", folder / "clip.mp4", *SMALL, "--to", "20", "-o", other, "--checkpoint-every", "0")
    assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, says in (
            ((memories[0], other), "was made with other settings of the cache than"),
            ((memories[0], folder / "none.kvv"), "there is no"),
            ((memories[0], "--port", port), f"cannot listen on 127.0.0.1, port {port}"),
            ((memories[0], "--max-num-seqs", 3), "--max-num-seqs is not for memories"),
            ((memories[0], "--strategy", "h2o"), "--strategy is not for memories"),
            ((*memories, "--video", folder / "clip.mp4"), "video: it is of one memory"),
        ):
            refused = run(capfd, "serve", *words)
            assert (refused.returncode, refused.stdout) == (2, ""), words
            assert says in refused.stderr
            assert "loading" not in refused.stderr


def test_ctrl_c_ends_it(server: Server, wanted: Wanted, memories: list[Path]) -> None:
    """Its notice goes with it, and so does its port."""
    assert [*(state_directory() / "serve").iterdir()]
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(timeout=120) == 0
    assert not [*(state_directory() / "serve").iterdir()]
    assert not re.search("Traceback|rror", server.log.read_text())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


@pytest.mark.slow
def test_ctrl_c_while_loading(memories: list[Path], tmp_path: Path) -> None:
    loading = start(tmp_path / "log", served=memories)
    try:
        until = time.monotonic() + 300
        while "kvvideo: loading tiny" not in loading.log.read_text():
            assert loading.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.killpg(loading.process.pid, signal.SIGINT)
        assert loading.process.wait(timeout=120) == 130
        assert "Traceback" not in loading.log.read_text()
    finally:
        end(loading.process)
