"""The desk without an engine: what begins when, what ends how, and who is told. And the HTTP routes without a desk."""

import json
import threading
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kvvideo.errors import EngineError
from kvvideo.serve.api import MOST_BYTES, Api
from kvvideo.serve.client import ASK, STOP
from kvvideo.serve.desk import WAITING, Crowded, Desk, Ending, Job, Late


class Stepped:
    """An engine whose steps do what they are told to, and nothing else."""

    def __init__(self, questions: int = 2) -> None:
        self.config = SimpleNamespace(questions=questions)
        self.steps = 0
        self.on_step: dict[int, Callable[[], None]] = {}
        self.stuck = False

    def step(self) -> None:
        self.steps += 1
        self.on_step.get(self.steps, lambda: None)()

    def check_progress(self) -> None:
        if self.stuck:
            self.stuck = False
            raise EngineError("nothing can go on")


@pytest.fixture
def engine() -> Stepped:
    return Stepped()


@pytest.fixture
def desk(engine: Stepped) -> Desk:
    return Desk(engine)  # type: ignore[arg-type]


class Told(list[Any]):
    """A request for ``steps`` steps of the engine, and all that was told of it."""

    def __init__(self, engine: Stepped, steps: int = 1, of: object = "memory", alone: bool = False) -> None:
        super().__init__()
        self.began = self.ended = -1
        self._engine, self._steps = engine, steps
        self.job = Job(of, alone, self._begin, self.append)

    def _begin(self, _: Job) -> Generator[str | None, None, None]:
        self.began = self._engine.steps
        try:
            for number in range(self._steps):
                yield None
                yield f"item {number}"
        finally:
            self.ended = self._engine.steps


def ended(*told: Told) -> list[int]:
    return [one.ended for one in told]


def run(desk: Desk, engine: Stepped, *told: Told, steps: int = 20) -> None:
    for one in told:
        desk.take(one.job)
    engine.on_step.setdefault(steps, desk.close)
    # Something to do until then.
    desk.take(Told(engine, steps + 1, of="other").job)
    desk.run()


def test_requests_share_steps_and_begin_in_order(desk: Desk, engine: Stepped) -> None:
    engine.config.questions = 3
    first, second, third = (Told(engine, steps) for steps in (3, 1, 1))
    late = Told(engine, 2)
    engine.on_step[2] = lambda: desk.take(late.job)
    run(desk, engine, first, second, third)
    assert first == ["item 0", "item 1", "item 2", None]
    assert (first.began, second.began) == (0, 0)
    assert ended(first, second) == [3, 1]
    assert third.began == 0
    assert late.began == 2
    assert late == ["item 0", "item 1", None]


def test_what_takes_long_between_two_steps_is_given_up_when_the_desk_closes(desk: Desk, engine: Stepped) -> None:
    """As one that shows an hour of frames again: the desk ends in its time, and says that it did not answer."""
    told: list[Any] = []

    def shown_again(job: Job) -> Generator[None, None, None]:
        assert not job.late()
        desk.close()
        desk._until = 0.0
        while not job.late():
            pytest.fail("there is no more time")
        raise Late
        yield

    desk.take(Job("memory", False, shown_again, told.append))
    desk.run()
    assert [type(one) for one in told] == [Ending]
    assert engine.steps == 0


def test_one_that_must_be_alone_waits_and_is_waited_for(desk: Desk, engine: Stepped) -> None:
    """Only questions of its memory wait; another's go on."""
    engine.config.questions = 9
    before, alone, after = Told(engine, 3), Told(engine, 2, alone=True), Told(engine, 1)
    run(desk, engine, Told(engine, 9, of="another"), before, alone, after)
    assert (before.began, before.ended) == (0, 3)
    assert (alone.began, alone.ended) == (3, 5)
    assert (after.began, after.ended) == (5, 6)


def test_nobody_is_kept_waiting_by_one_that_is_gone(desk: Desk, engine: Stepped) -> None:
    dropped, waiting = Told(engine, 100), Told(engine, 1, alone=True)

    def leave() -> None:
        dropped.job.dropped = True

    engine.on_step[4] = leave
    run(desk, engine, dropped, waiting)
    assert dropped.ended == 4
    assert dropped[-1] is None
    assert waiting.began == 4


def test_too_many_are_refused(desk: Desk, engine: Stepped) -> None:
    for _ in range(WAITING):
        desk.take(Told(engine).job)
    with pytest.raises(Crowded):
        desk.take(Told(engine).job)
    desk.close()
    desk.run()


def test_what_is_open_ends_first_when_it_closes_and_what_waits_is_told(
    desk: Desk, engine: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.config.questions = 1
    short, waiting = Told(engine, 3), Told(engine)
    engine.on_step[1] = desk.close
    for one in (short, waiting):
        desk.take(one.job)
    desk.run()
    assert short[-1] is None
    assert waiting.began == -1
    assert "told to end" in str(waiting[0])
    with pytest.raises(Crowded):
        desk.take(Told(engine).job)
    monkeypatch.setattr("kvvideo.serve.desk.PATIENCE", 0.0)
    other, endless = Desk(engine), Told(engine, 1 << 60)  # type: ignore[arg-type]
    engine.on_step[engine.steps + 2] = other.close
    other.take(endless.job)
    other.run()
    assert endless.ended >= 0
    assert "told to end" in str(endless[-1])


def test_an_engine_that_fails_is_told_to_all(desk: Desk, engine: Stepped) -> None:
    """One that is stuck goes on, with those that come later."""
    stuck, later, last = Told(engine, 5), Told(engine, 1), Told(engine, 9)

    def stick() -> None:
        engine.stuck = True
        desk.take(later.job)
        desk.take(last.job)

    def fail() -> None:
        raise EngineError("vLLM failed")

    engine.on_step |= {2: stick, 6: fail}
    with pytest.raises(EngineError, match="vLLM failed"):
        run(desk, engine, stuck)
    assert str(stuck[-1]) == "nothing can go on"
    assert later == ["item 0", None]
    assert str(last[-1]) == "vLLM failed"


def test_a_fault_in_one_request_is_its_own(desk: Desk, engine: Stepped) -> None:
    def begin(_: Job) -> Generator[None, None, None]:
        yield None
        raise ZeroDivisionError

    found: list[Any] = []
    fine = Told(engine, 3)
    desk.take(Job("memory", False, begin, found.append))
    engine.config.questions = 9
    run(desk, engine, fine)
    assert isinstance(found[0], ZeroDivisionError)
    assert fine[-1] is None


def test_it_waits_for_requests_from_other_threads(desk: Desk, engine: Stepped) -> None:
    told = Told(engine)
    engine.on_step[1] = desk.close
    thread = threading.Timer(0.2, desk.take, (told.job,))
    thread.start()
    desk.run()
    thread.join()
    assert told == ["item 0", None]


# HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
def client(desk: Desk, engine: Stepped) -> TestClient:
    return TestClient(Api(desk, engine, {"film": None}, "key", "token").app())  # type: ignore[arg-type, dict-item]


def test_each_key_opens_its_own_doors(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    for path, key, other in (("/v1/models", "key", "token"), (ASK, "token", "key"), (STOP, "token", "key")):
        method = "GET" if path.startswith("/v1") else "POST"
        for given, status in (({}, 401), ({"Authorization": f"Bearer {other}"}, 401), ({"Authorization": key}, 401)):
            reply = client.request(method, path, headers=given)
            assert reply.status_code == status
            assert reply.json()["error"]["type"] == "invalid_request_error"
        allowed = client.request(method, path, headers={"Authorization": f"Bearer {key}"}, json={"id": "0"})
        assert allowed.status_code in (200, 400)
    assert client.post("/v1/chat/completions", json={}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "Invalid JSON"),
        (b"[1]", 400, "should be an object"),
        (b" " * (MOST_BYTES + 1), 413, "longer than"),
        ({"model": "film"}, 400, "messages: Field required"),
        ({"model": "film", "messages": []}, 400, "messages: List should have at least 1"),
        ({"model": "film", "messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"model": "film", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0"),
        ({"model": "film", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "film", "messages": [{"role": "user", "content": "x"}], "temperature": 9}, 400, "temperature"),
        (
            {"model": "other", "messages": [{"role": "user", "content": "x"}]},
            404,
            "no memory 'other' here; there are film",
        ),
    ],
)
def test_bodies_that_cannot_be_read(client: TestClient, body: Any, status: int, says: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body)
    reply = client.post("/v1/chat/completions", content=data, headers={"Authorization": "Bearer key"})
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


def test_other_paths_are_refused_in_the_same_form(client: TestClient) -> None:
    assert client.get("/v1/completions").json()["error"]["message"] == "Not Found"
    assert client.get("/v1/chat/completions").status_code == 405
