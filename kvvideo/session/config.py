"""``EngineConfig``: the settings of an engine."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvvideo.compression.config import CacheConfig
from kvvideo.compression.options import check_whole
from kvvideo.errors import ConfigError
from kvvideo.prompt import system_text, words_tokens

if TYPE_CHECKING:
    from kvvideo.video import Source

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Dtypes that a model can be computed in; ``auto`` is its own."""

QUESTION_TOKENS = 1024
"""Room in tokens for a question: its text, last frames and answer."""


@dataclass(frozen=True)
class EngineConfig:
    """Settings of an engine: the model, its cache, and what it must hold at once.

    Attributes:
        model: hub name, directory, or ``tiny``.
        cache: how each session's cache is bounded.
        dtype: one of ``DTYPES``.
        max_model_len: longest request in vLLM's sense. A session is folded at every chunk, so this
            limits the live cache plus one chunk and one answer, never the length of the video.
        sessions: sessions that the KV pool must hold at once.
        questions: questions that may be asked at once.
        question_tokens: tokens that the KV pool has room for beside each session's, for every question: its text, the
            last frames and the answer.
        kv_bytes: size of the KV pool in bytes, on each GPU; by default what the sessions need, or, for ``full``, what
            vLLM finds.
        seed: seed of everything random.
        load_format: vLLM's; ``dummy`` makes weights up, for measuring at a model's true shape.
        step_tokens: most tokens computed in one step; also bounds the frames of one chunk.
        options: further ``EngineArgs`` of vLLM.
        spare_rows: rows of side state that the cache's pages have beyond those of its strategy, so that a running
            engine can switch to one with more (``Engine.use``).
        index: whether each chunk of a stream leaves what a question finds it by (``kvvideo.session.index``).
        again_tokens: tokens of the chunks that one question may be shown again. The KV pool has room for one such
            question at least, or for as many as fit the room of ``questions``.
        words_tokens: tokens of the words of a chunk that there is room for; see ``with_words``.

    Raises:
        ConfigError: if there is no such dtype, or ``spare_rows`` is not a number of rows.
    """

    model: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    cache: CacheConfig = field(default_factory=CacheConfig)
    dtype: str = "auto"
    max_model_len: int = 32768
    sessions: int = 1
    questions: int = 16
    question_tokens: int = QUESTION_TOKENS
    kv_bytes: int | None = None
    seed: int = 0
    load_format: str = "auto"
    step_tokens: int = 8192
    options: dict[str, Any] = field(default_factory=dict)
    spare_rows: int = 0
    index: bool = True
    again_tokens: int = 0
    words_tokens: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: no {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        check_whole("spare_rows", self.spare_rows, 0)
        check_whole("again_tokens", self.again_tokens, 0)

    def with_system(self, words: str) -> "EngineConfig":
        """Return the same with room for a system turn before each question.

        A token of words is some four bytes. Two are counted; of what takes even more tokens, fewer are asked at once.
        """
        return replace(self, question_tokens=self.question_tokens + len(system_text(words).encode()) // 2)

    def with_words(self, chunk_seconds: float) -> "EngineConfig":
        """Return the same with room for the words of chunks of so many seconds, of which a question may show one."""
        words = words_tokens(chunk_seconds)
        return replace(self, words_tokens=words, question_tokens=self.question_tokens + words)

    def with_words_of(self, source: "Source") -> "EngineConfig":
        """Return the same with room for the words of ``source``; as it is if that has none."""
        return self if source.subtitles is None else self.with_words(source.chunk_seconds)
