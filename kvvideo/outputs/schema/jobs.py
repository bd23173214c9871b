"""A line of a job file, as ``kvvideo.batch.jobs`` reads it."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from kvvideo.outputs.schema import Rule

_CLOCK = r"([0-9]+:0*[0-5]?[0-9]|[0-9]+):[0-5]?[0-9](\.[0-9]+)?"
_UNITS = r"([0-9]+h(0*[0-5]?[0-9]m)?|[0-9]+m)(0*[0-5]?[0-9](\.[0-9]+)?s)?"

Text = Annotated[str, Rule(pattern=r"\S")]
Path = Annotated[Text, Rule("path", description="The path of a file, relative to the job file; or its file:// URL.")]
Time = Annotated[
    Annotated[str, Rule(pattern=rf"^\s*([0-9]+(\.[0-9]+)?s?|{_CLOCK}|{_UNITS})\s*$")]
    | Annotated[float, Rule(minimum=0)]
    | None,
    Rule(
        "time",
        description="S, M:SS or H:MM:SS, with an optional fraction; 1h2m3s or parts of that; or a number of seconds.",
    ),
]
Tokens = Annotated[int, Rule(minimum=1)]
Above0 = Annotated[float, Rule(exclusiveMinimum=0)]
Seconds = Annotated[float, Rule(minimum=0)]


class Question(TypedDict):
    """A question of a job."""

    t: NotRequired[Annotated[Time, Rule(description="When it is asked; null or missing for the end.")]]
    q: Annotated[Text, Rule(description="What is asked.")]
    answer: NotRequired[Annotated[Text | None, Rule(description="The right answer, if it is known.")]]


class Message(TypedDict):
    """A video in the form of qwen-vl-utils; its fields are used instead of the command's options."""

    type: NotRequired[Literal["video"]]
    video: Path
    fps: NotRequired[Above0 | None]
    video_start: NotRequired[Seconds | None]
    video_end: NotRequired[Seconds | None]
    min_pixels: NotRequired[Tokens | None]
    max_pixels: NotRequired[Tokens | None]


Job = TypedDict(
    "Job",
    {
        "id": Annotated[Text, Rule(description="What the job is called by; no two of a file are the same.")],
        "video": Annotated[Path | Message, Rule(description="The video, or how qwen-vl-utils describes one.")],
        "questions": Annotated[list[Question], Rule(minItems=1)],
        "strategy": NotRequired[Annotated[Text, Rule(description="As --strategy.")]],
        "budget": NotRequired[Annotated[Tokens, Rule(description="As --budget, in tokens.")]],
        "max_tokens": NotRequired[Annotated[Tokens, Rule(description="As --max-tokens.")]],
        "fps": NotRequired[Annotated[Above0, Rule(description="As --fps.")]],
        "from": NotRequired[Annotated[Time, Rule(description="As --from.")]],
        "to": NotRequired[Annotated[Time, Rule(description="As --to.")]],
        "subtitles": NotRequired[
            Annotated[Path, Rule(description="As --subtitles; a file is relative to the job file.")]
        ],
        "system": NotRequired[Annotated[Text, Rule(description="What the model is told before each question.")]],
        "meta": NotRequired[Annotated[dict[str, Any], Rule(description="Anything; it is handed through.")]],
    },
)
"""A job: one line of a job file."""
