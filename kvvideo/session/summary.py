"""The baseline that remembers in words: captions, summarised again and again as they age."""

from dataclasses import dataclass

from kvvideo.errors import ConfigError
from kvvideo.prompt import CAPTION, NOTES, OPENING, SUMMARISE, note
from kvvideo.session.engine import Engine
from kvvideo.session.recent import RecentSession
from kvvideo.session.session import VideoSession
from kvvideo.types import Chunk

LINE_TOKENS = 96
"""Tokens of the longest line of the notes, its clock time included: our choice."""

LEAST_LINE = 32
"""Tokens of the shortest limit of a line that leaves words beside the clock time: our choice."""


@dataclass(frozen=True)
class Line:
    """One line of the notes: the stretch of video it is about, its text, and the number of its tokens."""

    start: float
    end: float
    text: str
    tokens: int


class SummarySession(RecentSession):
    """Keeps a caption of every chunk, and in the tokens that are left the last chunks themselves.

    When the captions reach half of the cache's ``max_tokens``, the model summarises the older half of
    them into one line, and so on, so the further back, the coarser. It is as good as the model is at
    writing: the bundled one was never trained to write captions, and with it this baseline only runs.

    Raises:
        ConfigError: if ``max_tokens`` leaves no room for words.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._limit = min(self._max_tokens, engine.config.step_tokens) // 2
        # More than four lines fit, so summarising half of them always leaves fewer than there were.
        self._line_limit = min(LINE_TOKENS, self._limit // 4)
        if self._line_limit < LEAST_LINE:
            raise ConfigError(
                f"max_tokens: {self._max_tokens} tokens are too few for the notes of 'summary'; "
                f"use at least {8 * LEAST_LINE}"
            )
        self._lines: list[Line] = []
        self._seen += self._count(NOTES)
        self._reserved = self._seen + self._limit

    @property
    def notes(self) -> str:
        """All lines of the notes, oldest first."""
        return "".join(line.text for line in self._lines)

    def ingest(self, chunk: Chunk) -> None:
        """Add a caption of ``chunk`` to the notes, and hold its pixels."""
        self._size(chunk)
        with VideoSession(self.engine) as alone:
            alone.ingest(chunk)
            caption = alone.ask(CAPTION, max_tokens=self._line_limit).text
        lines = self._condensed([*self._lines, self._line(chunk.start, chunk.end, caption)])
        super().ingest(chunk)
        self._lines = lines

    def _opening(self) -> str:
        return OPENING + NOTES + self.notes if self._lines else OPENING

    def _condensed(self, lines: list[Line]) -> list[Line]:
        while sum(line.tokens for line in lines) > self._limit:
            half = len(lines) // 2
            old, lines = lines[:half], lines[half:]
            notes = OPENING + NOTES + "".join(line.text for line in old)
            with VideoSession(self.engine, notes) as reader:
                summary = reader.ask(SUMMARISE, max_tokens=self._line_limit).text
            lines.insert(0, self._line(old[0].start, old[-1].end, summary))
        return lines

    def _line(self, start: float, end: float, words: str) -> Line:
        """Return a line of at most ``_line_limit`` tokens; ``words`` are cut where they go beyond."""
        tokenizer = self.engine.tokenizer
        ids = tokenizer(words).input_ids
        text = note(start, end, words)
        while ids and self._count(text) > self._line_limit:
            ids.pop()
            text = note(start, end, tokenizer.decode(ids))
        count = self._count(text)
        self._seen += count
        return Line(start, end, text, count)
