"""``kvvideo serve movie.kvv``: one engine that stays, for questions about saved memories over HTTP."""

import secrets
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kvvideo.errors import ConfigError
from kvvideo.runs.ask import Saved
from kvvideo.runs.recall import Looking
from kvvideo.serve.desk import Desk
from kvvideo.serve.notice import Notice, settings
from kvvideo.serve.served import Served, together
from kvvideo.serve.server import HOST, listening
from kvvideo.session import Engine
from kvvideo.session.config import EngineConfig
from kvvideo.storage.file import MemoryFile

_BACKLOG = 128
"""Connections that may wait to be taken."""


@dataclass(frozen=True)
class Answering:
    """Settings of the answers, those of ``kvvideo ask``.

    Attributes:
        config: of the engine, but for what a memory says itself.
        looking: how questions look again.
        video: where the video is, if not where the memory says; of a single memory only.
        model: where the model is, if not where the memories say.
        dtype: to compute in, if not that of the memories.
    """

    config: EngineConfig
    looking: Looking
    video: str | None = None
    model: str | None = None
    dtype: str | None = None


def serve(
    paths: Sequence[Path],
    answering: Answering,
    *,
    host: str,
    port: int,
    key: str | None,
    say: Callable[[str], None],
    ensure: Callable[[str], None],
) -> None:
    """Serve the memories at ``paths`` until told to end, by Ctrl-C or SIGTERM.

    Args:
        paths: of memories that one engine can have.
        answering: by which settings.
        host: address to listen at.
        port: to listen at; 0 for any that is free.
        key: that clients must have; None for none.
        say: takes lines for the person who waits.
        ensure: gets a model that is not here.

    Raises:
        ConfigError: if something cannot be used as given, before the model is loaded.
        KvvideoError: if the model cannot be loaded, or fails.
    """
    if answering.video is not None and len(paths) > 1:
        raise ConfigError("video: it is of one memory, and several are to be served; serve that one by itself")
    with ExitStack() as stack:
        memories = {}
        for name, path in _named(paths).items():
            memories[name] = _opened(name, path, answering, say)
            stack.callback(memories[name].close)
        config = together([*memories.values()])
        listener = stack.enter_context(closing(listening(host, port)))
        ensure(config.model)
        say(f"loading {config.model} …")
        engine = stack.enter_context(closing(Engine(config)))
        for served in memories.values():
            served.open(engine)
        _run(memories, engine, answering, listener, host, key, say)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Return ``paths`` by the names that clients know them by: those of the files, without ending if that is enough."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}


def _opened(name: str, path: Path, answering: Answering, say: Callable[[str], None]) -> Served:
    said: list[str] = []
    file = MemoryFile(path)
    try:
        saved = Saved.of(
            file,
            answering.config,
            answering.looking,
            said.append,
            video=answering.video,
            model=answering.model,
            dtype=answering.dtype,
        )
    except BaseException:
        file.close()
        raise
    for line in said:
        say(line)
    return Served(name, saved, said)


def _run(
    memories: dict[str, Served],
    engine: Engine,
    answering: Answering,
    listener: socket.socket,
    host: str,
    key: str | None,
    say: Callable[[str], None],
) -> None:
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from kvvideo.serve.api import Api

    desk, token = Desk(engine), secrets.token_urlsafe(32)
    app = Api(desk, engine, memories, key, token).app()
    if host == HOST and key is None:
        # A web page whose name is pointed at this machine must not read what is answered here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", limit_concurrency=256, timeout_graceful_shutdown=1
        )
    )
    port = listener.getsockname()[1]
    here = {"0.0.0.0": HOST, "": HOST, "::": "::1"}.get(host, host)
    url = f"http://{f'[{here}]' if ':' in here else here}:{port}"
    notice = Notice(url, token, _settings(answering), [served.shown for served in memories.values()])
    thread = threading.Thread(target=server.run, args=([listener],), name="kvvideo-serve", daemon=True)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        desk.close()

    try:
        for number in before:
            signal.signal(number, end)
        listener.listen(_BACKLOG)  # whoever reads that it serves may ask at once
        thread.start()
        with notice.posted(say):
            names = ", ".join(memories)
            say(f"serving {names} at {url}/v1; 'kvvideo ask' finds it, and Ctrl-C ends it")
            if host == HOST:
                say("only this machine can reach it; --host 0.0.0.0 lets others")
            desk.run()
    finally:
        server.should_exit = True
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(answering: Answering) -> str:
    return settings(answering.config, answering.looking, answering.model, answering.dtype, answering.video)
