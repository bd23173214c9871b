"""Questions about saved memories over HTTP, in the form of OpenAI's chat completions, and those of ``kvvideo ask``."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from kvvideo.errors import ConfigError, EngineError, KvvideoError
from kvvideo.prompt import Turn, well_formed
from kvvideo.runs.agenda import Question
from kvvideo.runs.records import looked_at
from kvvideo.serve.client import ASK, STOP
from kvvideo.serve.desk import Crowded, Desk, Ending, Job, Work
from kvvideo.serve.served import Asked, Said, Served
from kvvideo.session import Engine
from kvvideo.times import parse_time

MOST_BYTES = 1 << 20
"""Size of the largest body of a request."""

ANSWER_TOKENS = 128
"""Longest answer unless a request says otherwise, as of ``kvvideo ask``."""

_LOOK_SECONDS = 0.5
"""Seconds between looks whether a client that waits is still there."""

_UNABLE = ("tools", "functions", "response_format", "stop", "logprobs")
"""Fields that change an answer, unless they are empty, in a way that is not possible here."""

Event = Any
Body = TypeVar("Body", bound=BaseModel)


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """Words of all its parts."""
        parts = self.content
        return well_formed(parts if isinstance(parts, str) else "\n".join(part.text for part in parts or ()))


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Chat(BaseModel, extra="allow"):
    model: str
    messages: list[_Message] = Field(min_length=1)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    n: int | None = Field(None, ge=1, le=1)
    at: float | str | None = None

    def asked(self, seed: int) -> Asked:
        """Return the question: the last message; ``seed`` stands where the request has none.

        Raises:
            ConfigError: if it asks what cannot be.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _UNABLE and value:
                raise ConfigError(f"{name}: {value!r:.100} is not possible here")
        system = "\n".join(one.text for one in self.messages if one.role in ("system", "developer")).strip()
        said: list[tuple[str, str]] = []
        for one in self.messages:
            if one.role not in ("user", "assistant"):
                continue
            if said and said[-1][0] == one.role:
                said[-1] = (one.role, f"{said[-1][1]}\n{one.text}")
            else:
                said.append((one.role, one.text))
        if not said or said[-1][0] != "user" or not said[-1][1].strip():
            raise ConfigError("messages: the last one must be the user's, with words in it: it is the question")
        words = [text for _, text in said]
        if said[0][0] == "assistant":
            words.insert(0, "")
        turns: list[Turn] = list(zip(words[:-1:2], words[1::2], strict=True))
        sampling = {
            "max_tokens": self.max_completion_tokens or self.max_tokens or ANSWER_TOKENS,
            "temperature": self.temperature or 0.0,
            "seed": seed if self.seed is None else self.seed,
        }
        return Asked(words[-1].strip(), self._moment(), turns, system, sampling)

    def _moment(self) -> float | None:
        return parse_time(self.at) if isinstance(self.at, str) else self.at


class _Records(BaseModel):
    memory: str
    id: str
    questions: list[tuple[str, float | None]] = Field(min_length=1)
    max_answer_tokens: int = Field(ANSWER_TOKENS, ge=1)


class _Stop(BaseModel):
    id: str


class Api:
    """The routes of a server.

    Args:
        desk: answers.
        engine: of the desk.
        memories: that are served, by name.
        key: that clients must have; None for none.
        token: that ``kvvideo ask`` must have.
    """

    def __init__(self, desk: Desk, engine: Engine, memories: Mapping[str, Served], key: str | None, token: str) -> None:
        self._desk, self._engine, self._memories = desk, engine, memories
        self._key, self._token = key, token
        self._began = int(time.time())
        self._asking: dict[str, Job] = {}

    def app(self) -> FastAPI:
        """Return the application to serve."""
        app = FastAPI(title="kvvideo", openapi_url=None)
        app.add_api_route("/health", self.health)
        app.add_api_route("/v1/models", self.models)
        app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"], response_model=None)
        app.add_api_route(ASK, self.ask, methods=["POST"], response_model=None)
        app.add_api_route(STOP, self.stop, methods=["POST"], response_model=None)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(HTTPException, _no_such_thing)
        return app

    async def health(self) -> Response:
        """Say that it runs."""
        return Response()

    async def models(self, request: Request) -> dict[str, Any]:
        """List the memories."""
        self._check_key(request, self._key)
        about = {"object": "model", "created": self._began, "owned_by": "kvvideo"}
        return {"object": "list", "data": [{"id": name, **about} for name in self._memories]}

    async def complete(self, request: Request) -> Response:
        """Answer a question about a memory, at once or as its tokens come."""
        self._check_key(request, self._key)
        chat = await _read(request, _Chat)
        served = self._served(chat.model)
        try:
            asked = chat.asked(served.saved.config.seed)
            questions = [Question(asked.text, asked.at)]
            served.saved.check(questions)
        except ConfigError as error:
            raise Refused(400, str(error)) from None
        if asked.sampling["max_tokens"] >= (most := served.saved.config.max_model_len):
            raise Refused(400, f"max_tokens: an answer is shorter than the {most} tokens that a request may have")
        job, events = self._taken(
            request,
            served,
            served.goes_elsewhere(questions),
            lambda job: served.answering(self._engine, asked, job),
        )
        first = await _first(job, events)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": chat.model}
        if chat.stream:
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            return _streaming(_chunks(head, first, events, usage), "text/event-stream")
        try:
            said = [first, *[one async for one in events]][-1]
        except KvvideoError as error:
            raise _as_refused(error, job) from None
        return JSONResponse(_completion(head, said))

    async def ask(self, request: Request) -> Response:
        """Give the records of ``kvvideo ask``, one JSON object a line; an error comes after the last."""
        self._check_key(request, self._token)
        body = await _read(request, _Records)
        served = self._served(body.memory)
        questions = [Question(text, at) for text, at in body.questions]
        try:
            served.saved.check(questions)
        except KvvideoError as error:
            return Response(_line(error), 400, media_type="application/jsonl")
        job, events = self._taken(
            request,
            served,
            served.goes_elsewhere(questions),
            lambda job: served.recording(self._engine, questions, body.max_answer_tokens, job),
        )
        self._asking[body.id] = job
        return _streaming(self._lines(body.id, events), "application/jsonl")

    async def stop(self, request: Request) -> Response:
        """Have ``ask`` ask no more of what it was given."""
        self._check_key(request, self._token)
        body = await _read(request, _Stop)
        if (job := self._asking.get(body.id)) is not None:
            job.stopped = True
        return Response()

    async def _lines(self, number: str, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for record in events:
                    yield json.dumps(record) + "\n"
        except Ending:
            pass  # without a last record ``ask`` loads the model after all
        except Exception as error:
            yield _line(error)
        finally:
            self._asking.pop(number, None)

    def _check_key(self, request: Request, key: str | None) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if key is not None and not (kind.lower() == "bearer" and hmac.compare_digest(given.encode(), key.encode())):
            raise Refused(401, "this server wants its API key, and that is another one", "invalid_api_key")

    def _served(self, name: str) -> Served:
        if name not in self._memories:
            names = ", ".join(self._memories)
            raise Refused(404, f"there is no memory {name!r:.100} here; there are {names}", "model_not_found")
        return self._memories[name]

    def _taken(
        self, request: Request, served: Served, alone: bool, begin: Callable[[Job], Work]
    ) -> tuple[Job, AsyncIterator[Event]]:
        """Hand a request to the desk; return it, and what comes of it."""
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(item: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(items.put_nowait, item)

        job = Job(served, alone, begin, tell)
        try:
            self._desk.take(job)
        except Crowded:
            raise Refused(503, "too many questions wait, or the server ends; ask again later") from None
        return job, _events(request, job, items)


async def _events(request: Request, job: Job, items: "asyncio.Queue[Event]") -> AsyncIterator[Event]:
    """Yield what comes of ``job`` while its client is there, and drop it when this ends.

    Raises:
        Exception: what ended the job.
    """
    try:
        while True:
            try:
                item = await asyncio.wait_for(items.get(), _LOOK_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    return
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        job.dropped = True


async def _first(job: Job, events: AsyncIterator[Event]) -> Said:
    """Return the first of ``events``, before which a request can still be refused."""
    try:
        said: Said = await anext(events)
    except StopAsyncIteration:
        raise Refused(499, "the client has gone") from None
    except KvvideoError as error:
        raise _as_refused(error, job) from None
    return said


def _as_refused(error: KvvideoError, job: Job) -> Refused:
    # Before the first step it is the request that cannot be: too long, for one.
    asks_wrongly = isinstance(error, ConfigError) or (isinstance(error, EngineError) and not job.stepped)
    return Refused(400 if asks_wrongly else 500, str(error))


async def _chunks(head: dict[str, Any], said: Said, events: AsyncIterator[Event], usage: bool) -> AsyncIterator[str]:
    """Yield an answer as server-sent events: its words as they come, then its end and evidence."""

    def chunk(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    shown = ""
    yield chunk({"role": "assistant", "content": ""})
    try:
        async with aclosing(events):  # type: ignore[type-var]
            async for one in _from(said, events):
                said = one
                # A character whose bytes have not all come yet stays back.
                text = said.answer.text
                text = text if said.answer.finish_reason else text.rstrip("\N{REPLACEMENT CHARACTER}")
                if text != shown:
                    yield chunk({"content": text[len(shown) :]})
                    shown = text
        yield chunk({}, said.answer.finish_reason, **_evidence(said))
        if usage:
            yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(said)})
    except KvvideoError as error:
        yield _event(Refused(500, str(error)).body)
    yield "data: [DONE]\n\n"


async def _from(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in events:
        yield event


def _completion(head: dict[str, Any], said: Said) -> dict[str, Any]:
    message = {"role": "assistant", "content": said.answer.text}
    choice = {"index": 0, "message": message, "finish_reason": said.answer.finish_reason, "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(said), **_evidence(said)}


def _evidence(said: Said) -> dict[str, Any]:
    """Return the moment of an answer and what it has looked at again, as records have them."""
    times = {"asked_at": round(said.asked_at, 3), "answered_at": round(said.answered_at, 3)}
    return {**times, **looked_at(said.answer.looked_at)}


def _usage(said: Said) -> dict[str, int]:
    asked, answered = said.asked_tokens, len(said.answer.token_ids)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _line(error: Exception) -> str:
    code = error.exit_code if isinstance(error, KvvideoError) else KvvideoError.exit_code
    return json.dumps({"type": "error", "message": str(error), "exit_code": code}) + "\n"


def _streaming(parts: AsyncIterator[str], kind: str) -> StreamingResponse:
    return StreamingResponse(parts, media_type=kind, headers={"Cache-Control": "no-cache"})


async def _read(request: Request, kind: type[Body]) -> Body:
    """Return the body of a request."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise Refused(413, f"the request is longer than {MOST_BYTES} bytes")
    try:
        return kind.model_validate_json(bytes(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(400, f"{place + ': ' if place else ''}{first['msg']}") from None


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status)


async def _no_such_thing(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(Refused(error.status_code, str(error.detail)).body, error.status_code)
