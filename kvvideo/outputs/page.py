"""``html``: a report in one file that needs nothing else: no script, nothing from elsewhere.

``templates/report.html`` is the page and ``templates/report.css`` its style sheet. Jinja escapes all that is not marked
``safe``: that are the pictures of ``plots`` alone.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kvvideo._version import __version__
from kvvideo.outputs import clean, plots
from kvvideo.outputs.figures import count, size
from kvvideo.outputs.report import Report, asked, cut, earlier
from kvvideo.outputs.samples import Sample
from kvvideo.outputs.writer import AtEnd, Record
from kvvideo.times import format_time

if TYPE_CHECKING:
    from markupsafe import Markup

Frame = Callable[[float], "Future[bytes | None]"]
"""The picture shown at a moment, as JPEG, when it is there; None if there is none."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page's content security policy: a browser may load nothing for it."""


class Page:
    """Writes the report when it is closed, as ``AtEnd``.

    Args:
        path: the file; None for stdout.
        frame: asked at the first answer of each moment, in case the video cannot be read again.
        samples: read at the end.
    """

    def __init__(self, path: Path | None, frame: Frame | None = None, samples: Sequence[Sample] = ()) -> None:
        self._file = AtEnd(path, lambda records: render(records, self._ready(), samples))
        self._frame = frame
        self._pictures: dict[float, Future[bytes | None]] = {}

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end, and ask for the frame of its moment."""
        self._file.write(record)
        if self._frame is not None and record["type"] == "answer" and record["asked_at"] not in self._pictures:
            self._pictures[record["asked_at"]] = self._frame(record["asked_at"])

    def close(self) -> None:
        """Write the page."""
        self._file.close()

    def _ready(self) -> dict[float, bytes | None]:
        found: dict[float, bytes | None] = {}
        for at, picture in self._pictures.items():
            # A report without a picture is better than none.
            with suppress(Exception):
                found[at] = picture.result()
        return found


def render(
    records: Sequence[Record], pictures: dict[float, bytes | None] | None = None, samples: Sequence[Sample] = ()
) -> str:
    """Return the page.

    Args:
        records: of one strategy.
        pictures: of moments, as JPEG.
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
    return environment.get_template("report.html").render(
        report=report,
        figures=_figures(report, records, samples),
        marks=plots.marks(moments, report.start, report.end),
        ticks=plots.ticks(report.start, report.end, 9),
        bar=lambda held, at, label: plots.bar(held, report.start, report.end, at, label),
        pictures={at: b64encode(picture).decode() for at, picture in (pictures or {}).items() if picture is not None},
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
