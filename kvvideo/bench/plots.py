"""The pictures of ``bench memory``: accuracy against budget, age and kind of question; the same with looking again."""

from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError

AT_SHARE = 0.1
"""Share that is drawn and shown by age and by kind; the nearest one measured."""


def draw(report: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``memory-budget.svg``, ``memory-age.svg`` and ``memory-kind.svg`` to ``directory``; return their paths.

    Answers with looking again are drawn apart, as ``memory-budget-recall-4.svg`` and so on.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError("plots: matplotlib is not installed; pip install 'kvvideo[plots]'") from error
    matplotlib.use("svg")
    # Text stays text, and equal reports give equal files.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kvvideo", "font.size": 10})
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for recall in sorted({cell.get("recall", 0) for cell in report["cells"]}):
        own = [cell for cell in report["cells"] if cell["strategy"] == "full" or cell.get("recall", 0) == recall]
        name = f"-recall-{recall}" if recall else ""
        part = {**report, "cells": own}
        paths.append(_by_budget(part, directory / f"memory-budget{name}.svg"))
        paths.append(_by_age(part, directory / f"memory-age{name}.svg"))
        paths.append(_by_kind(part, directory / f"memory-kind{name}.svg"))
    return paths


def _by_budget(report: dict[str, Any], path: Path) -> Path:
    figure, axes = _figure("Questions about the past")
    for number, (name, cells) in enumerate(_bounded(report).items()):
        x = [100 * cell["share"] for cell in cells]
        y = [100 * cell["backward"] for cell in cells]
        low, high = ([100 * cell["backward_interval"][i] for cell in cells] for i in (0, 1))
        (line,) = axes.plot(x, y, **_style(name, number))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.1, linewidth=0)
    full = 100 * report["cells"][0]["backward"]
    axes.axhline(full, color="0.4", linestyle=":", label="full")
    axes.set_xscale("log")
    shares = sorted({100 * cell["share"] for cell in report["cells"][1:]})
    axes.set_xticks(shares, [f"{share:g}" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("cache at its largest, % of the stream")
    return _save(figure, axes, path)


def _by_age(report: dict[str, Any], path: Path) -> Path:
    share = middle(report)
    figure, axes = _figure(f"A cache of {share:.0%} of the stream")
    labels = [*(f"{age:g} s" if age else "older" for age in report["ages"]), "never"]
    for number, (name, cells) in enumerate(_bounded(report).items()):
        cell = next(cell for cell in cells if cell["share"] == share)
        points = [(i, 100 * y) for i, y in enumerate(cell["by_age"]) if y is not None]
        axes.plot([i for i, _ in points], [y for _, y in points], **_style(name, number))
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("seconds since it was shown, up to")
    return _save(figure, axes, path)


def _by_kind(report: dict[str, Any], path: Path) -> Path:
    """Draw a field for each strategy and kind; strategies in order of what they remember."""
    from matplotlib.figure import Figure

    share = middle(report)
    cells = [cell for cell in report["cells"] if cell["strategy"] == "full" or cell["share"] == share]
    cells.sort(key=lambda cell: -cell["backward"])
    kinds = [*report["cells"][0]["by_kind"]]
    values = [[100 * cell["by_kind"].get(kind, 0.0) for kind in kinds] for cell in cells]
    figure = Figure(figsize=(7.5, 0.6 + 0.27 * len(cells) + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"Right answers by kind of question, %: a cache of {share:.0%} of the stream")
    axes.imshow(values, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right")
    axes.set_yticks(range(len(cells)), [cell["strategy"] for cell in cells])
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 60 else "black", size=8)
    figure.savefig(path, metadata={"Date": None})
    return path


def middle(report: dict[str, Any]) -> float:
    """Return the share of ``report`` that is nearest to ``AT_SHARE``; 1 if it has only the full cache."""
    shares = {cell["share"] for cell in report["cells"][1:]}
    return min(shares, key=lambda share: abs(share - AT_SHARE), default=1.0)


def _bounded(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in report["cells"][1:]:
        found.setdefault(cell["strategy"], []).append(cell)
    return found


def _style(name: str, number: int) -> dict[str, Any]:
    dashes = ("-", "--", "-.")
    own = name == "distinct"
    return {
        "label": name,
        "color": "black" if own else f"C{number % 10}",
        "linewidth": 2.5 if own else 1.3,
        "linestyle": "-" if own else dashes[number // 10 % 3],
        "marker": "o",
        "markersize": 3,
    }


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_ylabel("right answers, %")
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> Path:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return path
