"""The records of ``kvvideo find``, version 1; ``docs/records.md`` says what the fields mean."""

from typing import Annotated, Literal, TypedDict

from kvvideo.outputs.schema import Rule
from kvvideo.outputs.schema.records import Count, Positive, Seconds, Status

Part = Annotated[float, Rule("part", minimum=0, maximum=1)]


class Hit(TypedDict):
    """A moment that words are found at."""

    type: Literal["hit"]
    schema: Literal[1]
    rank: Positive
    video: str
    memory: str | None
    words: str
    start: Seconds
    end: Seconds
    score: Part
    share: Part
    clip: str | None
    frame: str | None
    model: str
    strategy: str


class Searched(TypedDict):
    """A memory or a video, and the part of it that was searched."""

    video: str
    memory: str | None
    start: Seconds
    end: Seconds


class Done(TypedDict):
    """The last record of a search."""

    type: Literal["done"]
    schema: Literal[1]
    status: Status
    error: str | None
    words: str
    hits: Count
    searched: list[Searched]
    seconds: Seconds


Record = Hit | Done
