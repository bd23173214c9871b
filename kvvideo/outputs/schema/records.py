"""All records that kvvideo writes, version 1; ``docs/records.md`` says what the fields mean.

A field may be added without a new version; none is renamed, removed or changed in meaning.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from kvvideo.outputs.schema import Rule

Seconds = Annotated[float, Rule("seconds", minimum=0)]
Count = Annotated[int, Rule("count", minimum=0)]
Positive = Annotated[int, Rule(minimum=1)]
Share = Annotated[Annotated[float, Rule(minimum=0, maximum=1)] | None, Rule("share")]
Stretch = Annotated[list[Seconds], Rule(prefixItems=[{"$ref": "#/$defs/seconds"}] * 2, items=False, minItems=2)]
Status = Annotated[Literal["complete", "interrupted", "error"], Rule("status")]


class Cache(TypedDict):
    """The bound of a cache, and what it holds."""

    budget: Positive | None
    max_tokens: Positive | None
    seen: Count
    live: Count
    evicted: Count
    blocks: Count
    compactions: Count
    bytes: Count
    index_bytes: NotRequired[Count]


class Hit(TypedDict):
    """A stretch of video that was shown once more before a question, and its share of the question's attention."""

    start: Seconds
    end: Seconds
    score: Annotated[float, Rule(minimum=0, maximum=1)]


class Remembered(TypedDict):
    """Shares of the tokens that are held of each of equal parts of the video from ``start`` to ``end``."""

    start: Seconds
    end: Seconds
    shares: Annotated[list[Annotated[float, Rule(minimum=0, maximum=1)]], Rule(minItems=1)]


class Answer(TypedDict):
    """An answer; of a batch, with the fields from ``id`` on."""

    type: Literal["answer"]
    schema: Literal[1]
    video: str
    asked_at: Seconds
    answered_at: Seconds
    question: str
    answer: str
    finish_reason: Literal["stop", "length"]
    task: NotRequired[str | None]
    since: NotRequired[Seconds | None]
    model: str
    strategy: str
    cache: Cache
    held: list[Stretch]
    first_token_seconds: Seconds
    seconds: Seconds
    remembered: NotRequired[Remembered]
    looked_at: NotRequired[Annotated[list[Hit], Rule(minItems=1)]]
    system: NotRequired[str]
    id: NotRequired[str]
    index: NotRequired[Count]
    t: NotRequired[Seconds | None]
    settings: NotRequired[str]
    fingerprint: NotRequired[str | None]
    meta: NotRequired[dict[str, Any]]
    expected: NotRequired[str]
    right: NotRequired[bool]


class Unasked(TypedDict):
    """A question that was not asked."""

    asked_at: Seconds | None
    question: str


class Done(TypedDict):
    """The last record of a run."""

    type: Literal["done"]
    schema: Literal[1]
    video: NotRequired[str]
    status: Status
    error: str | None
    model: str
    strategy: str
    answers: Count
    unasked: list[Unasked]
    chunks: Count
    frames: Count
    start: Seconds
    end: Seconds
    cache: Cache | None
    waited_seconds: Seconds
    seconds: Seconds
    load_seconds: NotRequired[Seconds]
    subtitles: NotRequired[str]


class Ingest(TypedDict):
    """The record of ``kvvideo ingest``."""

    type: Literal["ingest"]
    schema: NotRequired[Literal[1]]
    video: str
    output: str
    status: Status
    error: str | None
    model: str
    strategy: str
    chunks: Count
    frames: Count
    start: Seconds
    end: Seconds
    resumed_from: Seconds | None
    cache: Cache | None
    checkpoints: Count
    bytes: Count | None
    waited_seconds: Seconds
    seconds: Seconds
    subtitles: NotRequired[str]


class Pace(TypedDict):
    """The pace of the last run like a predicted one on the same machine."""

    chunk_seconds: Seconds
    chunks: Count
    tokens: Count
    answer_seconds: Seconds | None
    load_seconds: Seconds
    at: Seconds


class Prediction(TypedDict):
    """Predicted cost of a run; ``analyze`` has none of the fields from ``checkpoints`` on but ``checkpoint_bytes``."""

    type: Literal["prediction"]
    schema: NotRequired[Literal[1]]
    video: str
    model: str
    strategy: str
    max_tokens: NotRequired[Positive | None]
    width: Count
    height: Count
    chunks: Count
    frames: Count
    tokens: Count
    compactions: Count
    peak_tokens: Count
    bytes: Count
    index_bytes: NotRequired[Count]
    full_bytes: Count
    last_position: Count
    trained_positions: Count
    frame_tokens: NotRequired[Count]
    budget_tokens: NotRequired[Count | None]
    weight_bytes: NotRequired[Count]
    pool_bytes: NotRequired[Count | None]
    reserve_bytes: NotRequired[Count]
    source_width: NotRequired[Count]
    source_height: NotRequired[Count]
    legible_pixels: NotRequired[Count]
    legible_frame_tokens: NotRequired[Count | None]
    answers: NotRequired[Count]
    run_seconds: NotRequired[Seconds | None]
    pace: NotRequired[Pace | None]
    subtitles: NotRequired[str]
    words_tokens: NotRequired[Count]
    checkpoints: NotRequired[Count]
    kept_checkpoints: NotRequired[Count]
    checkpoint_bytes: NotRequired[Count]
    file_bytes: NotRequired[Count]
    frame_bytes: NotRequired[Count]


class Failed(TypedDict):
    """A question of a batch that could not be answered."""

    type: Literal["failed"]
    schema: Literal[1]
    id: str
    index: Count
    t: Seconds | None
    question: str
    video: str
    model: str
    strategy: str
    settings: str
    fingerprint: str | None
    meta: NotRequired[dict[str, Any]]
    expected: NotRequired[str]
    system: NotRequired[str]
    error: str
    exit_code: Positive
    attempts: Positive
    answer: NotRequired[str]


class Score(TypedDict):
    """Answers that were right, of those whose right answer is known."""

    scored: Count
    right: Count
    accuracy: Share


class Now(TypedDict):
    """Work of one run of a batch."""

    ingests: Count
    complete: NotRequired[Count]
    video_seconds: Seconds
    frames: Count
    seconds: Seconds


class Summary(Score):
    """Results of a batch."""

    type: Literal["summary"]
    schema: Literal[1]
    status: Status
    error: str | None
    model: str
    jobs: Count
    videos: Count
    questions: Count
    answered: Count
    failed: Count
    left: Count
    strategies: dict[str, Score]
    now: Now


class Check(TypedDict):
    """Predicted cost of one ingest of a batch."""

    type: Literal["check"]
    schema: Literal[1]
    video: str
    strategy: str
    jobs: Annotated[list[str], Rule(minItems=1)]
    where: str
    questions: Count
    error: str | None
    findings: list[str]
    seconds: NotRequired[Seconds | None]
    chunks: NotRequired[Count | None]
    frames: NotRequired[Count | None]
    tokens: NotRequired[Count]
    compactions: NotRequired[Count]
    peak_tokens: NotRequired[Count]
    bytes: NotRequired[Count]
    index_bytes: NotRequired[Count]
    full_bytes: NotRequired[Count]
    last_position: NotRequired[Count]
    trained_positions: NotRequired[Count]
    frame_tokens: NotRequired[Count]
    budget_tokens: NotRequired[Count | None]
    weight_bytes: NotRequired[Count]
    pool_bytes: NotRequired[Count | None]
    reserve_bytes: NotRequired[Count]
    subtitles: NotRequired[str]
    words_tokens: NotRequired[Count]


class CheckTotal(TypedDict):
    """Predicted cost of all ingests of a batch."""

    type: Literal["check_total"]
    schema: Literal[1]
    model: str
    questions: Count
    seconds: Seconds
    chunks: Count
    frames: Count
    tokens: Count
    sessions: Positive
    pool_bytes: Count | None
    errors: Count
    findings: Count


class Stream(TypedDict):
    """A video at hand of a batch."""

    jobs: list[str]
    strategy: str
    start: Seconds
    position: Seconds
    end: Seconds | None
    share: Share
    left_seconds: Seconds | None
    live: Count
    max_tokens: Positive | None
    done: Count
    of: Count


class Progress(TypedDict):
    """The state of a command, on stderr; while a video is read with the fields from ``start`` on."""

    type: Literal["progress"]
    schema: Literal[1]
    seconds: Seconds
    doing: str | None
    done: NotRequired[Count]
    of: NotRequired[Count]
    start: NotRequired[Seconds]
    position: NotRequired[Seconds]
    end: NotRequired[Seconds | None]
    share: NotRequired[Share]
    left_seconds: NotRequired[Seconds | None]
    frames_per_second: NotRequired[Seconds | None]
    behind_seconds: NotRequired[Seconds]
    dropped_seconds: NotRequired[Seconds]
    live: NotRequired[Count]
    max_tokens: NotRequired[Positive | None]
    evicted: NotRequired[Count]
    bytes: NotRequired[Count]
    videos: NotRequired[list[Stream]]


Record = Answer | Done | Ingest | Prediction | Failed | Summary | Check | CheckTotal | Progress
