"""A batch over a Ray cluster: an engine for every GPU, or for every few CPUs, and all of them take from one queue.

Engines are Ray actors. They say what happens in short turns, and only the process that runs the batch writes it down,
so whatever becomes of an engine, what it was at is known: what it had not answered waits in the queue again.
"""

import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from kvvideo.batch.run import Local, Queue
from kvvideo.batch.streams import Answered, Ended, Event, Moved
from kvvideo.batch.tasks import Task
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError, KvvideoError, VideoError, first_line
from kvvideo.runs.agenda import Question
from kvvideo.runs.recall import OFF, Looking
from kvvideo.session import Engine, EngineConfig, open_engine

logger = logging.getLogger("kvvideo.batch")

TURN_SECONDS = 0.25
"""Seconds that an engine goes on before it reports how far it is; answers it gives at once."""

PATIENCE_SECONDS = 60.0
"""Seconds without any engine after which the person who waits is told."""

LOOK_SECONDS = 2.0
"""Seconds between two looks at the machines of the cluster."""

SILENT_SECONDS = 40.0
"""Seconds without an answer of the cluster's head. After 60 s Ray would end this process."""

DEAD_SECONDS = 5.0
"""Seconds that all machines may be dead, the head's too. A dead one never comes back."""

ROOMLESS_SECONDS = 300.0
"""Seconds without room for an engine on any machine. An autoscaler takes minutes to start another."""

REACH_SECONDS = 10.0
"""Seconds that the address of a cluster may take to answer."""

LOSSES = 3
"""Engines that may be lost in a row, with nothing answered between."""

CPUS = 4
"""CPUs of an engine by default where there are no GPUs, if there are so many."""

STORE_BYTES = 128 << 20
"""Ray's object store on a cluster of our own. Hardly anything passes through it."""


@dataclass(frozen=True)
class Loaded:
    """An engine that is ready.

    Attributes:
        fingerprint: of its model.
        capacity: videos that it streams at once.
        node: machine it runs on.
        pid: of its process there.
    """

    fingerprint: str
    capacity: int
    node: str
    pid: int


@dataclass(frozen=True)
class Given:
    """A task on its way to an engine.

    Attributes:
        name: what the engine calls it by when it says what happens.
        directory: where its checkpoints are; None if there are none.
    """

    name: str
    task: Task
    directory: Path | None


@dataclass(frozen=True)
class Turn:
    """Events of a turn, with the names of their tasks; ``error`` if the engine cannot go on."""

    events: list[tuple[str, Event]]
    error: KvvideoError | None = None


class Worker:
    """An engine on the cluster, in a process of its own. Its errors are values: Ray would wrap what is raised."""

    def __init__(self, local: Local, directory: str) -> None:
        self._directory = directory
        self._local = replace(local, kept=self._kept, stopped=lambda: self._stopped)
        self._engine: Engine | None = None
        self._queue = Queue([])
        self._given: dict[int, Given] = {}
        self._stopped = False
        self._working: Iterator[Event] = iter(())

    def load(self) -> Loaded | KvvideoError:
        """Start the engine."""
        # Ctrl-C in a terminal reaches all its processes; what is to be done then we are told.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Names of files are relative to where the batch was started. Where that is not, they are not there either.
        with suppress(OSError):
            os.chdir(self._directory)
        try:
            self._engine = open_engine(self._local.engine, self._local.caches)
            return Loaded(self._engine.fingerprint, self._engine.capacity, socket.gethostname(), os.getpid())
        except KvvideoError as error:
            return error

    def turn(self, given: Sequence[Given], stop: bool) -> Turn:
        """Take ``given`` on and work for a while; with ``stop``, to the end of the chunks at hand."""
        self._stopped = self._stopped or stop
        happened: dict[int, Event] = {}
        for one in given:
            self._given[id(one.task)] = one
            if (error := _unreadable(one.task)) is None:
                self._queue.put(one.task)
            else:
                happened[id(one.task)] = Ended(one.task, error, [*one.task.wants])
        until, failure = time.monotonic() + TURN_SECONDS, None
        try:
            while not happened or time.monotonic() < until:
                event = self._next()
                if event is None:
                    break
                # Of how far a video is only the latest counts.
                happened[id(event.task)] = event
                if not isinstance(event, Moved):
                    break
        except KvvideoError as error:
            failure = error
        events = [(self._given[key].name, event) for key, event in happened.items()]
        for key, event in happened.items():
            if isinstance(event, Ended):
                del self._given[key]
        return Turn(events, failure)

    def _next(self) -> Event | None:
        """Return the next event; None if there is nothing to do."""
        event = next(self._working, None)
        if event is None and len(self._queue):
            assert self._engine is not None
            self._working = self._local.work(self._engine, self._queue)
            event = next(self._working, None)
        return event

    def _kept(self, task: Task) -> Path | None:
        """Return the directory of the checkpoints of ``task``; None if this machine cannot write there."""
        directory = self._given[id(task)].directory
        return directory if directory is not None and os.access(directory.parent, os.W_OK | os.X_OK) else None


def _unreadable(task: Task) -> VideoError | None:
    """Return an error if this machine does not see the very video of ``task``."""
    path = task.source.path
    try:
        found = task.source.fingerprint()
    except VideoError as error:
        found, why = None, str(error)
    else:
        why = f"{path!r} is {'no file that can be read' if found is None else 'another file'}"
    if found == task.fingerprint:
        return None
    return VideoError(f"{why}, on {socket.gethostname()}; all machines of a Ray cluster must see the same videos")


@dataclass
class _Place:
    """An engine as it is seen from here.

    Attributes:
        actor: of Ray.
        call: what it was asked last, while it has not answered.
        loaded: None until it is ready.
        cache: of the tasks it has.
        tasks: that it has, by name.
        answered: what it has answered of them, and what broke the video off before, if something did.
    """

    actor: Any
    call: Any
    loaded: Loaded | None = None
    cache: CacheConfig | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    answered: dict[str, dict[Question, Exception | None]] = field(default_factory=dict)

    def take(self, event: Event, name: str) -> Event:
        """Take in ``event``, and return it with the task ``name`` as this process has it."""
        task = self.tasks[name]
        if isinstance(event, Answered):
            known = self.answered.setdefault(name, {})
            known |= {asked.question: asked.error for asked in event.asked if asked.question is not None}
        elif isinstance(event, Ended):
            del self.tasks[name]
            self.answered.pop(name, None)
        return replace(event, task=task)

    def put_back(self, queue: Queue) -> Iterator[Ended]:
        """Nothing more comes of its tasks: have what is left of them wait in ``queue``, and say which have ended."""
        for name, task in self.tasks.items():
            known = self.answered.get(name, {})
            left = [question for question in task.wants if question not in known]
            broken = next((error for error in known.values() if isinstance(error, KvvideoError)), None)
            if broken is not None or not left:
                yield Ended(task, broken, left)
            else:
                queue.put(task.only([want for question in left for want in task.wants[question]]))
        self.tasks, self.answered = {}, {}


@dataclass(frozen=True)
class Cluster:
    """Does tasks with the engines of a Ray cluster. Whatever ``Local`` can do each of them does.

    Every engine must find the videos and the model under the same names. Checkpoints are kept where the directory of
    the results can be reached.

    Args:
        engine, caches, max_answer_tokens, every: as ``Local`` has them, of each engine.
        loaded: shown each engine as soon as it is there.
        kept: where checkpoints are; None for none.
        stopped: once true, every video stops after the chunk at hand.
        engines: how many; by default one for each GPU, or as many as there are CPUs for.
        cpus: that each has; by default one beside a GPU, else up to ``CPUS``.
        looking: as ``Local`` has it.
        address: of a cluster to join, as ``ray.init`` takes it; by default ``RAY_ADDRESS``, or else one is started on
            this machine, for as long as it takes.
        say: takes lines for the person who waits.
    """

    engine: EngineConfig
    caches: Sequence[CacheConfig]
    max_answer_tokens: int = 128
    loaded: Callable[[Loaded], None] = lambda _: None
    kept: Callable[[Task], Path | None] = lambda _: None
    every: float = 60.0
    stopped: Callable[[], bool] = lambda: False
    engines: int | None = None
    cpus: int | None = None
    looking: Looking = OFF
    address: str | None = None
    say: Callable[[str], None] = lambda _: None
    worker: ClassVar[type[Worker]] = Worker

    def events(self, queue: Queue) -> Iterator[Event]:
        """Do the tasks in ``queue`` on the cluster; see ``Executor``."""
        with connected(self.address) as ray:
            fleet = _Fleet(self, ray, queue)
            try:
                yield from fleet.run()
            finally:
                fleet.end()


class _Watch:
    """Looks after the machines of a cluster, in a thread: asking a head that is gone does not return.

    Args:
        ray: connected.
        gpus, cpus: that an engine needs.
        say: takes lines for the person who waits.
    """

    def __init__(self, ray: Any, gpus: int, cpus: int, say: Callable[[str], None]) -> None:
        self._ray, self._needs, self._say = ray, (gpus, cpus), say
        self._heard, self._alive, self._room = False, True, True
        self._silent = self._dead = self._roomless = 0.0
        self._told = False
        self._checked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="kvvideo-ray-nodes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join(2 * LOOK_SECONDS)

    def check(self) -> None:
        """Tell of it when there is no room any more; to be called often.

        Raises:
            EngineError: if there was none for too long, or the head is gone.
        """
        now = time.monotonic()
        # No more than that: this process may have been suspended.
        passed, self._checked = min(now - self._checked, 1.0), now
        heard, self._heard = self._heard, False
        self._silent = 0.0 if heard else self._silent + passed
        self._dead = 0.0 if self._alive else self._dead + passed
        self._roomless = 0.0 if self._room else self._roomless + passed
        if self._room:
            self._told = False
        elif self._alive and not self._told:
            self._told = True
            self._say("no machine of the Ray cluster has room for an engine any more; another is waited for")
        again = "; what was answered is kept: run it again"
        if self._silent > SILENT_SECONDS:
            raise EngineError(f"the head of the Ray cluster has not answered for {SILENT_SECONDS:g} s{again}")
        if self._dead > DEAD_SECONDS:
            raise EngineError(f"no machine of the Ray cluster is alive any more{again}")
        if self._roomless > ROOMLESS_SECONDS:
            raise EngineError(
                f"for {ROOMLESS_SECONDS:g} s no machine of the Ray cluster had room for an engine{again} when one has"
            )

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                nodes = self._ray.nodes()
            except Exception:
                logger.debug("the cluster cannot be asked for its machines", exc_info=True)
                continue
            self._alive = any(node["Alive"] for node in nodes)
            self._room = room(nodes, *self._needs) > 0
            self._heard = True


class _Fleet:
    """The engines of one run, and what they are at."""

    def __init__(self, cluster: Cluster, ray: Any, queue: Queue) -> None:
        self._cluster, self._ray, self._queue = cluster, ray, queue
        gpus, cpus, count = share_out(ray.nodes(), cluster.engines, cluster.cpus)
        self._local = Local(
            cluster.engine, cluster.caches, cluster.max_answer_tokens, every=cluster.every, looking=cluster.looking
        )
        self._remote = ray.remote(
            num_gpus=gpus,
            num_cpus=cpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": _environment(gpus, cpus)},
        )(cluster.worker)
        self._watch = _Watch(ray, gpus, cpus, cluster.say)
        self._failure: KvvideoError | None = None
        self._model: str | None = None
        self._losses = 0
        self._places = [self._start() for _ in range(min(count, len(queue)))]

    def run(self) -> Iterator[Event]:
        """Yield events until nothing is left to do or can be done."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while True:
            stop = self._failure is not None or self._cluster.stopped()
            self._watch.check()
            self._go_on(stop)
            if not any(place.tasks for place in self._places) and (stop or not len(self._queue)):
                break
            places = {place.call: place for place in self._places if place.call is not None}
            ready, _ = self._ray.wait([*places], num_returns=1, timeout=TURN_SECONDS)
            for call in ready:
                yield from self._hear(places[call])
            if self._model is None and time.monotonic() > patient_until:
                self._cluster.say(
                    "no engine is ready yet: the model is still loading, or the Ray cluster has no room now"
                )
                patient_until = math.inf
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Leave no engine behind."""
        self._watch.close()
        for place in self._places:
            self._kill(place)

    def _start(self) -> _Place:
        actor = self._remote.remote(self._local, os.getcwd())
        return _Place(actor, actor.load.remote())

    def _kill(self, place: _Place) -> None:
        with suppress(Exception):
            self._ray.kill(place.actor)

    def _go_on(self, stop: bool) -> None:
        """Another turn for all engines that wait for one and have something to do."""
        for place in self._places:
            if place.call is None:
                given = [] if stop else self._hand_out(place)
                if place.tasks:
                    place.call = place.actor.turn.remote(given, stop)

    def _hand_out(self, place: _Place) -> list[Given]:
        """Return tasks for an engine: one more than it streams at once, to open meanwhile, but at most its share."""
        if place.loaded is None:
            return []
        at_hand = sum(len(other.tasks) for other in self._places)
        share = math.ceil((len(self._queue) + at_hand) / len(self._places))
        if not place.tasks:
            place.cache = next(self._queue.caches(), None)
        given: list[Given] = []
        while len(place.tasks) < min(place.loaded.capacity + 1, share):
            task = None if place.cache is None else self._queue.take(place.cache)
            if task is None:
                break
            given.append(Given(task.key, task, self._cluster.kept(task)))
            place.tasks[task.key] = task
        return given

    def _hear(self, place: _Place) -> Iterator[Event]:
        """Yield the events that an engine reports."""
        call, place.call = place.call, None
        errors = self._ray.exceptions
        try:
            said = self._ray.get(call)
        except errors.RayTaskError as error:
            logger.debug("an engine failed", exc_info=True)
            self._fail(place, EngineError(f"an engine on the Ray cluster failed: {_last_line(error)}"))
        except errors.RayError as error:
            logger.debug("an engine was lost", exc_info=True)
            yield from self._lost(place, _why(error))
        else:
            if isinstance(said, Turn):
                yield from self._turned(place, said)
            elif isinstance(said, Loaded):
                self._loaded(place, said)
            else:
                self._fail(place, said)

    def _turned(self, place: _Place, turn: Turn) -> Iterator[Event]:
        for name, event in turn.events:
            if not isinstance(event, Moved):
                self._losses = 0
            yield place.take(event, name)
        if turn.error is not None:
            self._fail(place, turn.error)
        elif not turn.events:
            # It was told to stop before it could begin with them.
            yield from place.put_back(self._queue)

    def _loaded(self, place: _Place, loaded: Loaded) -> None:
        if self._model in (None, loaded.fingerprint):
            self._cluster.loaded(loaded)
            self._model, place.loaded = loaded.fingerprint, loaded
        else:
            self._fail(
                place,
                ConfigError(
                    f"the model on {loaded.node} is another than on other machines of the Ray cluster; all must have "
                    "the same files"
                ),
            )

    def _lost(self, place: _Place, why: str) -> Iterator[Event]:
        """Replace an engine whose process or machine is gone, or out of reach."""
        self._losses += 1
        self._kill(place)
        yield from place.put_back(self._queue)
        if self._losses < LOSSES:
            self._cluster.say(f"an engine on the Ray cluster was lost, another takes its place: {why}")
            self._places[self._places.index(place)] = self._start()
        else:
            self._fail(
                place,
                EngineError(
                    f"{LOSSES} engines in a row were lost on the Ray cluster, and nothing was answered between: {why}"
                ),
            )

    def _fail(self, place: _Place, error: KvvideoError) -> None:
        """It cannot go on, so nobody does; the others end what they are at."""
        self._failure = self._failure or error
        place.tasks, place.loaded = {}, None


def required() -> Any:
    """Return the module of Ray.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor: Ray is not installed; get it with: pip install 'kvvideo[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Join a cluster, and give the module of Ray: the one joined already, the one at ``address``, or one of our own.

    Raises:
        ConfigError: if it cannot be joined, or Ray is not installed.
        EngineError: if one cannot be started.
    """
    ray = required()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    talks = logger.isEnabledFor(logging.DEBUG)
    level = "INFO" if talks else "CRITICAL"
    options: dict[str, Any] = {"log_to_driver": talks, "logging_level": level}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES, "_node_ip_address": "127.0.0.1"}
        # Without one, Ray writes one for all clusters into the home directory.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        _reach(address)
    logging.getLogger("ray").setLevel(level)
    with _prints(talks):
        try:
            # Workers import from where this is called, before all else: it must be this code, and nothing beside a
            # video.
            with chdir(Path(__file__).parents[2]):
                ray.init(address or "local", **options)
        except Exception as error:
            if address is not None:
                raise _no_cluster(address, first_line(error)) from error
            raise EngineError(f"Ray cannot start on this machine: {first_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _prints(talks: bool) -> Iterator[None]:
    """Have Ray print to stderr, or nothing: deaths of workers it tells on stdout, which is for results."""
    from ray._private import worker as module

    show = module.print_worker_logs

    def print_worker_logs(data: Any, _: Any, *options: Any, **more: Any) -> None:
        if talks:
            show(data, sys.stderr, *options, **more)

    module.print_worker_logs = print_worker_logs
    try:
        yield
    finally:
        module.print_worker_logs = show


def _reach(address: str) -> None:
    """Raise ConfigError if nobody answers at ``address``: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(f"ray-address: no Ray cluster can be joined at {address!r}: {why}")


def share_out(nodes: Sequence[dict[str, Any]], engines: int | None, cpus: int | None) -> tuple[int, int, int]:
    """Return the GPUs and CPUs of an engine, and the number of engines, on ``nodes`` as Ray describes them.

    Raises:
        ConfigError: if there is no room for so many.
    """
    gpus = int(any(node["Resources"].get("GPU", 0) >= 1 for node in nodes if node["Alive"]))
    wanted = engines or 1
    allowed = [cpus] if cpus is not None else [1] if gpus else range(CPUS, 0, -1)
    each = next((each for each in allowed if room(nodes, gpus, each) >= wanted), allowed[-1])
    if (there := room(nodes, gpus, each)) < wanted:
        has = f"{'a GPU and ' if gpus else ''}{each} CPU{'' if each == 1 else 's'}"
        raise ConfigError(
            f"engines: there is room for {there} with {has} each on the Ray cluster, not for {wanted}; use fewer "
            "--engines, or fewer --cpus-per-engine"
        )
    return gpus, each, engines or there


def room(nodes: Sequence[dict[str, Any]], gpus: int, cpus: int) -> int:
    """Return the number of engines with ``gpus`` and ``cpus`` each that fit on ``nodes`` as Ray describes them."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    counts = [int(node.get("CPU", 0) // cpus) for node in resources]
    return sum(min(n, int(node.get("GPU", 0))) if gpus else n for n, node in zip(counts, resources, strict=True))


def _environment(gpus: int, cpus: int) -> dict[str, str]:
    """Return variables for the process of an engine, which must be set before anything is imported there."""
    names = ("VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not gpus:
        # Without this, vLLM binds the threads of all engines to the same cores.
        found["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cpus))
    return found


def _why(error: Exception) -> str:
    """Return the first sentence of a message of Ray's."""
    return first_line(error).partition(". ")[0].rstrip(".")


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__
