"""The origin of a memory: the engine settings it needs, and its video, if that is at hand."""

from dataclasses import fields, replace
from pathlib import Path

from kvvideo.errors import ConfigError
from kvvideo.runs.events import caches_of
from kvvideo.session.allowance import chunk_tokens, long_enough
from kvvideo.session.config import EngineConfig
from kvvideo.session.memory import Memory
from kvvideo.session.pool import with_room_for
from kvvideo.video import Source


def engine_for(
    memory: Memory, config: EngineConfig, model: str | None = None, dtype: str | None = None
) -> EngineConfig:
    """Return ``config`` with the model, dtype and cache of ``memory``, or the ``model`` and ``dtype`` given.

    There is room for the strategies that it had on its way, which its checkpoints may have.
    """
    own = str(memory.tensors["keys"].dtype).removeprefix("torch.")
    config = replace(config, model=model or memory.model, dtype=dtype or own, cache=memory.cache)
    fps, seconds, pixels = (memory.source.get(name) for name in ("fps", "chunk_seconds", "max_pixels"))
    config = config.with_words(seconds) if memory.source.get("subtitles") and seconds else config
    chunk = chunk_tokens(fps, seconds, pixels) + config.words_tokens if fps and seconds and pixels else 0
    config = replace(config, step_tokens=max(config.step_tokens, chunk))
    return long_enough(with_room_for(caches_of(memory), config), [memory.cache], chunk)


def video_of(memory: Memory, file: Path, given: str | None = None) -> tuple[Source | None, str]:
    """Find the video of a memory: where it was, as seen from here and from ``file``, and beside ``file``.

    Args:
        memory: what was made of it.
        file: where the memory is.
        given: where the video is, if that is known; then it is looked for nowhere else.

    Returns:
        The video, which must be the very file; or None and the reason, which may be empty.

    Raises:
        ConfigError: if there is no file at ``given``, or the memory does not say what it is of.
    """
    settings = {field.name: memory.source[field.name] for field in fields(Source) if field.name in memory.source}
    if not settings:
        return None, "" if given is None else "the memory does not say how its video was looked at, so it is not used"
    source, fingerprint = Source.from_dict(settings), memory.source.get("fingerprint")
    if fingerprint is None:
        return None, "" if given is None else "the memory is of a stream, not of a file, so no video is used"
    name = Path(source.path)
    places = [Path(given)] if given is not None else [name, file.parent / name, file.parent / name.name]
    there = [path for path in places if path.is_file()]
    if given is not None and not there:
        raise ConfigError(f"video: there is no file {given!r}")
    for path in there:
        found = replace(source, path=str(path))
        if found.fingerprint() == fingerprint:
            return found, ""
    if there:
        return None, f"{str(there[0])!r} is not the video that the memory was made of, so it is not used"
    return None, ""
