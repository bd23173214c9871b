"""The two pictures of ``bench memory``: accuracy against budget, and against age; and the same with looking again."""

from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError

AT_SHARE = 0.1
"""Share that the plot by age is drawn for; the nearest one measured."""


def draw(report: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``memory-budget.svg`` and ``memory-age.svg`` to ``directory``; return their paths.

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
    shares = sorted({cell["share"] for cell in report["cells"][1:]}, key=lambda share: abs(share - AT_SHARE))
    figure, axes = _figure(f"A cache of {shares[0]:.0%} of the stream" if shares else "")
    labels = [f"{age:g} s" if age else "older" for age in report["ages"]]
    for number, (name, cells) in enumerate(_bounded(report).items()):
        cell = next(cell for cell in cells if cell["share"] == shares[0])
        points = [(i, 100 * y) for i, y in enumerate(cell["by_age"]) if y is not None]
        axes.plot([i for i, _ in points], [y for _, y in points], **_style(name, number))
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("seconds since it was shown, up to")
    return _save(figure, axes, path)


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
