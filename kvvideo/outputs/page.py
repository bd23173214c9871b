"""``html``: a report in one file that loads nothing, but for the video beside it if a player is asked for.

``templates/report.html`` is the page. Jinja escapes all that is not marked ``safe``: that are the pictures of
``plots``, and the script of the player, ``templates/seek.js``.
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvvideo._version import __version__
from kvvideo.outputs import clean, plots
from kvvideo.outputs.contents import Contents
from kvvideo.outputs.evidence import clock, shown_again
from kvvideo.outputs.figures import count, size
from kvvideo.outputs.look import PLAIN, ROOM, Look
from kvvideo.outputs.report import Report, asked, cut, earlier, held
from kvvideo.outputs.samples import Sample
from kvvideo.outputs.stills import Pictures, When, fitted
from kvvideo.outputs.writer import AtEnd, Record
from kvvideo.times import format_time

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


class Frame(Protocol):
    """Fetches pictures."""

    def __call__(self, at: float, end: float | None = None, /) -> "Future[bytes | None]":
        """Return the picture shown at a moment, or a small one of the stretch that goes on to ``end``, as JPEG.

        None if there is none.
        """


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page's content security policy: a browser may load nothing for it."""


class Page:
    """Writes the report when it is closed, as ``AtEnd``.

    Args:
        path: the file; None for stdout.
        frame: asked for the moment of each answer and for what it looked at again, each once, as answers come: the
            video may be one that cannot be read again.
        samples: read at the end.
        look: pictures, and a player.
    """

    def __init__(
        self,
        path: Path | None,
        frame: Frame | None = None,
        samples: Sequence[Sample] = (),
        look: Look = PLAIN,
    ) -> None:
        self._file = AtEnd(path, lambda records: render(records, self._ready(), samples, look, look.href(path)))
        self._frame = frame if look.room else None
        self._pictures: dict[When, Future[bytes | None]] = {}

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end, and ask for its pictures."""
        self._file.write(record)
        if self._frame is not None and record["type"] == "answer":
            for when in _whens(record):
                if when not in self._pictures:
                    self._pictures[when] = self._frame(*when)

    def close(self) -> None:
        """Write the page."""
        self._file.close()

    def _ready(self) -> Pictures:
        found: dict[When, bytes] = {}
        for when, future in self._pictures.items():
            # A report without a picture is better than none.
            with suppress(Exception):
                if (picture := future.result()) is not None:
                    found[when] = picture
        return found


def render(
    records: Sequence[Record],
    pictures: Pictures | None = None,
    samples: Sequence[Sample] = (),
    look: Look = PLAIN,
    video: str = "",
) -> str:
    """Return the page.

    Args:
        records: of one strategy.
        pictures: of moments, and of stretches that were looked at again.
        samples: what the cache held at other moments.
        look: the room for pictures.
        video: the address of the video that a player shows; empty for no player.
    """
    report = Report.of(records)
    contents = Contents.of(report.moments)
    answers = [record for moment in report.moments for record in moment.answers]
    shown, smaller = _fitted(pictures or {}, answers, look.room)
    moments = [(moment.at, f"moment-{number}") for number, moment in enumerate(report.moments, 1)]
    environment = _environment()
    script = environment.get_template("seek.js").render()
    return environment.get_template("report.html").render(
        report=report,
        contents=contents,
        one_question=len({record["question"] for record in answers}) < 2,
        figures=_figures(report, records, samples),
        marks=plots.marks(moments, report.start, report.end),
        ticks=plots.ticks(report.start, report.end, 9),
        heights=plots.heights,
        pictures={when: b64encode(picture).decode() for when, picture in shown.items()},
        smaller=smaller,
        looked=shown_again,
        any_looked=any(map(shown_again, records)),
        asked=asked,
        clock=clock,
        cut=cut,
        earlier=earlier,
        held=held,
        video=video,
        script=script,
        policy=_policy(script) if video else POLICY,
        version=__version__,
    )


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kvvideo.outputs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breakable": _breakable,
        "line": clean.line,
        "lines": clean.lines,
        "number": count,
        "size": size,
        "time": format_time,
    }
    return environment


def _policy(script: str) -> str:
    """Return the policy of a page with a player: a video is loaded, and this one script is run."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return f"{POLICY}; media-src 'self' file: http: https:; script-src 'sha256-{digest}'"


def _whens(record: Record) -> list[When]:
    """Return the moment and the stretches that an answer has pictures of."""
    return [(record["asked_at"],), *shown_again(record)]


def _fitted(pictures: Pictures, answers: Sequence[Record], room: int) -> tuple[Pictures, str]:
    """Return the pictures for the page, and a line about what had to be made smaller or left out for the room."""
    uses: Counter[When] = Counter({(record["asked_at"],) for record in answers})
    uses.update(when for record in answers for when in shown_again(record))
    shown = fitted(pictures, uses, room)
    if not pictures or not room or shown == pictures:
        return shown, ""
    words = "Pictures were made smaller" if shown else "Pictures were left out"
    more = "" if room == ROOM["all"] else "; --pictures all has all of them"
    return shown, f"{words} to keep this page small{more}."


def _breakable(name: str) -> "Markup":
    """Return the name of a file, which may be parted where its words are."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_-])(?=\w)", r"\1<wbr>", str(escape(name))))


def _figures(report: Report, records: Sequence[Record], samples: Sequence[Sample]) -> list[dict[str, str]]:
    """Return the plots of the cache over time, each with a name and what it is about; none if nothing is known."""
    at_end = [(r["end"], r["cache"]) for r in records if r["type"] == "done" and r["cache"] is not None]
    answered = [(moment.at, moment.cache) for moment in report.moments]
    caches = dict(sorted([*samples, *answered, *at_end], key=lambda sample: sample[0]))
    if not caches:
        return []
    limit = [*caches.values()][-1]["max_tokens"]
    end = max(report.end, *caches)
    figures = []
    for key, name, show in (
        ("live", "Tokens held", count),
        ("evicted", "Tokens evicted", count),
        ("bytes", "Memory", size),
    ):
        points = [(at, float(cache[key])) for at, cache in caches.items()]
        most, last = show(max(value for _, value in points)), show(points[-1][1])
        bound = limit if key == "live" else None
        of = "" if bound is None else f" (bound: {count(bound)})"
        about = f"{last} at the end" if key == "evicted" else f"{most} at most{of}, {last} at the end"
        label = f"{name} from {format_time(report.start)} to {format_time(end)}: {about}"
        drawn = plots.plot(points, report.start, end, label, show, bound)
        figures.append({"name": name, "about": about, "drawn": drawn})
    return figures
