"""Opens what a chat is about: a video, or a saved memory and its video if that is at hand."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.runs.analyze import Asking
from kvvideo.runs.origin import engine_for, video_of
from kvvideo.runs.playback import Playback
from kvvideo.runs.recall import Looking, of_memory, unkept
from kvvideo.session import BASELINES, Engine, EngineConfig, Recall
from kvvideo.session.hub import fetch
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile
from kvvideo.storage.frames import KeptFrames
from kvvideo.video import Source


@dataclass(frozen=True)
class Opening:
    """Opens the playbacks of a chat.

    Attributes:
        config: of the engine; memories bring their own cache settings.
        directory: an empty one, for checkpoints.
        room: bytes that these may take.
        every: seconds of video between them.
        video: where the video of a memory is now; None: where the memory says.
        model: where its model is now; None: where the memory says.
        dtype: of the model; None: what the memory says.
        tell: takes a line for the person.
        looking: how questions look again.
    """

    config: EngineConfig
    directory: Path
    room: int
    every: float
    video: str | None
    model: str | None
    dtype: str | None
    tell: Callable[[str], None]
    looking: Looking

    def open(self, subject: Path | Source) -> Playback:
        """Return a playback of a memory file, or of a source, on an engine of its own."""
        return self.open_memory(subject) if isinstance(subject, Path) else self.open_video(subject)

    def open_video(self, source: Source) -> Playback:
        """Return a playback of ``source`` from its beginning, on an engine of its own.

        Raises:
            ConfigError: if there is nothing to see in the part that is to be read.
            VideoError: if it cannot be decoded.
        """
        # A bad video is found before the model is loaded, and meanwhile it decodes.
        reader = source.open()
        try:
            Asking(()).check(source, reader.info)
            recall, kept = self._recall(source)
            config = self.looking.room_in(self.config, source.fps, source.chunk_seconds, source.max_pixels)
            engine, store = self._engine(replace(config, index=True)), self._checkpoints()
            return Playback(
                engine, source, checkpoints=store, every=self.every, reader=reader, recall=recall, kept=kept
            )
        except BaseException:
            reader.close()
            raise

    def open_memory(self, path: Path, before: Playback | None = None) -> Playback:
        """Return a playback that goes on from the memory in ``path``.

        Args:
            path: a memory file.
            before: lends its engine, and is closed; None for an engine of its own.

        Raises:
            ConfigError: if the file cannot be used; ``before`` goes on then.
        """
        saved = MemoryFile(path)
        memory = saved.memory()
        source, note = video_of(memory, path, self.video)
        if note:
            self.tell(note)
        recall = of_memory(memory, self.looking, source, saved.frames(), self.tell)

        def go_on(engine: Engine) -> Playback:
            store = self._checkpoints()
            playback = Playback(
                engine, source, checkpoints=store, every=self.every, saved=saved, memory=memory, recall=recall
            )
            with suppress(KvvideoError):  # whoever plays on will hear of it
                playback.length()  # the prompt shows it
            return playback

        if before is None:
            config = engine_for(memory, self.config, self.model, self.dtype)
            config = replace(self.looking.room_for(config, memory), index=True)
            fetch(config.model, tell=self.tell)
            return go_on(self._engine(config))
        return before.replaced_by(go_on)

    def _recall(self, source: Source) -> tuple[Recall | None, KeptFrames | None]:
        """Return how to look again at ``source``, and what keeps its frames if it can be read only once."""
        if source.replayable or not self.looking.count:
            return (self.looking.of_file(source) if source.replayable else None), None
        if not self.looking.keep_bytes:
            self.tell(unkept(source))
            return None, None
        kept = KeptFrames(self.directory.parent / "frames", self.looking.keep_bytes)
        return self.looking.at(kept), kept

    def _checkpoints(self) -> Checkpoints:
        number = sum(1 for _ in self.directory.iterdir())
        return Checkpoints(self.directory / str(number), self.room)

    @staticmethod
    def _engine(config: EngineConfig) -> Engine:
        from kvvideo.session.pool import with_room_for

        return Engine(with_room_for(others(config.cache), config))


def others(cache: CacheConfig) -> list[CacheConfig]:
    """Return the settings of the strategies that a running chat can switch to."""
    from kvvideo.compression import load, strategies

    others = []
    for name in strategies():
        try:
            if name not in BASELINES and load(name).bounded:
                others.append(replace(cache, strategy=name))
        except ConfigError:
            continue  # these numbers are impossible for it, and switching to it will say so
    return others
