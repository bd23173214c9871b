"""``html``: a report in one file that needs nothing else: no script, nothing from elsewhere.

``templates/report.html`` is the page and ``templates/report.css`` its style sheet. Jinja escapes all that is not marked
``safe``: that are the pictures of ``plots`` alone.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvvideo._version import __version__
from kvvideo.outputs import clean, plots
from kvvideo.outputs.evidence import clock, shown_again
from kvvideo.outputs.figures import count, size
from kvvideo.outputs.report import Report, asked, cut, earlier
from kvvideo.outputs.samples import Sample
from kvvideo.outputs.stills import PICTURES
from kvvideo.outputs.writer import AtEnd, Record
from kvvideo.times import format_time

if TYPE_CHECKING:
    from markupsafe import Markup

When = tuple[float] | tuple[float, float]
"""A moment, or the start and the end of a stretch, in seconds."""

Pictures = Mapping[When, bytes | None]
"""JPEGs of moments and stretches; None where there is none."""


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
    """

    def __init__(self, path: Path | None, frame: Frame | None = None, samples: Sequence[Sample] = ()) -> None:
        self._file = AtEnd(path, lambda records: render(records, self._ready(), samples))
        self._frame = frame
        self._pictures: dict[When, Future[bytes | None]] = {}

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end, and ask for its pictures."""
        self._file.write(record)
        if self._frame is not None and record["type"] == "answer":
            whens: list[When] = [(record["asked_at"],), *shown_again(record)]
            for when in whens:
                if when not in self._pictures:
                    self._pictures[when] = self._frame(*when)

    def close(self) -> None:
        """Write the page."""
        self._file.close()

    def _ready(self) -> Pictures:
        found: dict[When, bytes | None] = {}
        for when, picture in self._pictures.items():
            # A report without a picture is better than none.
            with suppress(Exception):
                found[when] = picture.result()
        return found


def render(records: Sequence[Record], pictures: Pictures | None = None, samples: Sequence[Sample] = ()) -> str:
    """Return the page.

    Args:
        records: of one strategy.
        pictures: of moments, and of stretches that were looked at again.
        samples: what the cache held at other moments.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    report = Report.of(records)
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
    moments = [(moment.at, f"moment-{number}") for number, moment in enumerate(report.moments, 1)]
    there = {when: picture for when, picture in (pictures or {}).items() if picture is not None}
    return environment.get_template("report.html").render(
        report=report,
        figures=_figures(report, records, samples),
        marks=plots.marks(moments, report.start, report.end),
        ticks=plots.ticks(report.start, report.end, 9),
        bar=lambda held, at, label: plots.bar(held, report.start, report.end, at, label),
        pictures={when[0]: b64encode(picture).decode() for when, picture in there.items() if len(when) == 1},
        looked=_looking(there),
        any_looked=any(map(shown_again, records)),
        asked=asked,
        cut=cut,
        earlier=earlier,
        policy=POLICY,
        version=__version__,
    )


def _breakable(name: str) -> "Markup":
    """Return the name of a file, which may be parted where its words are."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_-])(?=\w)", r"\1<wbr>", str(escape(name))))


def _looking(pictures: Mapping[When, bytes]) -> Callable[[Record], list[dict[str, str]]]:
    """Return a function that gives what an answer looked at again: when, the picture, and the moment of that.

    Each call takes from the room that there is in a page: what has none is without a picture.
    """
    left = PICTURES - sum(len(picture) for when, picture in pictures.items() if len(when) == 1)

    def looked(record: Record) -> list[dict[str, str]]:
        nonlocal left
        found = []
        for stretch in shown_again(record):
            picture = pictures.get(stretch, b"")
            if len(picture) > left:
                picture = b""
            left -= len(picture)
            shown = b64encode(picture).decode()
            found.append({"when": clock(stretch), "at": format_time(sum(stretch) / 2), "picture": shown})
        return found

    return looked


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
