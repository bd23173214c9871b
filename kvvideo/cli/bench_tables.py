"""Reports of ``kvvideo bench`` as tables."""

from typing import Any

from rich.table import Table
from rich.text import Text

from kvvideo.cli.render import err, out, size, whole

BUSY = 0.9
"""Share of the time from which on an engine counts as busy."""


def race(report: dict[str, Any]) -> None:
    """Print the report of ``bench ingest`` and ``bench ask``: a row for each rival and length."""
    asked = report["questions"] > 0
    head = ["chunks", "", "ms/chunk", "mean", "frames/s", "tokens seen", "held"]
    table = Table(*head, *(["first token, ms"] if asked else []), box=None)
    for row in sorted(report["rows"], key=lambda row: (row["chunks"], [*report["rivals"]].index(row["rival"]))):
        table.add_row(
            str(row["chunks"]),
            row["rival"],
            f"{row['ms']:.1f}",
            f"{row['mean_ms']:.1f}",
            f"{row['frames_per_second']:.1f}",
            str(row["tokens"]),
            size(row["held_bytes"]),
            *([f"{row['first_token_ms']:.1f}"] if asked else []),
        )
    whole(table)
    for name, about in report["rivals"].items():
        out.print(Text(f"{name}: {about}", style="dim"))
    for name, reason in report["ended"].items():
        err.print(Text(f"{name} {reason}"))
    for reason in report["left_out"]:
        err.print(Text(f"left out: {reason}"))
    ratios = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in report["ratios"].items())
    if ratios:
        out.print(f"kvvideo's speed: {ratios}")
    if limit := report["limit"]:
        fastest = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in limit["ratios"].items())
        out.print(
            f"with this cache the matrix products alone take {limit['ms']:.1f} ms/chunk at this machine's "
            f"{limit['operations_per_second'] / 1e12:.2g} TFLOP/s in {limit['dtype']}: "
            f"nothing could be more than {fastest}"
        )


def compaction(report: dict[str, Any]) -> None:
    """Print the report of ``bench compaction``: a row for each strategy, and for each kernel."""
    table = Table("strategy", "ms/chunk", "ms/compaction", "watching", "side state", "share of a step", box=None)
    for cost in report["strategies"]:
        table.add_row(
            cost["strategy"],
            f"{cost['ms']:.1f}",
            f"{cost['compaction_ms']:.2f}",
            f"{cost['watching_ms']:.2f}",
            f"{cost['state_ms']:.2f}",
            f"{cost['share']:.1%}",
        )
    whole(table)
    out.print(
        f"at {report['max_tokens']} tokens, of which {report['budget']} stay; compaction: one, in all layers; watching "
        "and side state: ms per chunk; share: of all three in the time of a chunk, compactions spread over the chunks"
    )
    kernels = report["kernels"]
    table = Table("one layer", "µs", "torch, µs", "MB", "MFLOP", "limit, µs", "reached", box=None)
    for kernel in kernels["kernels"]:
        reference = kernel["reference_ms"]
        table.add_row(
            kernel["name"],
            f"{1000 * kernel['ms']:.0f}",
            "" if reference is None else f"{1000 * reference:.0f}",
            f"{kernel['bytes'] / 1e6:.2f}",
            f"{kernel['operations'] / 1e6:.0f}",
            f"{1000 * kernel['limit_ms']:.1f}",
            f"{kernel['fraction']:.0%}",
        )
    whole(table)
    rates = ", ".join(f"{rate:g} TFLOP/s in {unit}" for unit, rate in kernels["teraflops"].items())
    out.print(
        f"{kernels['kv_heads']} KV heads of {kernels['head_dim']} x {kernels['tokens']} tokens in {kernels['dtype']}; "
        f"limits as measured here: {kernels['gigabytes_per_second']} GB/s copying, {rates}"
    )


def profile(report: dict[str, Any]) -> None:
    """Print the report of ``bench profile``: a row for each part."""
    table = Table("part", "ms/chunk", "share", "products alone, ms", box=None)
    for name, ms in report["parts"].items():
        least = report["least_ms"].get(name)
        table.add_row(name, f"{ms:.2f}", f"{ms / report['ms_watched']:.1%}", "" if least is None else f"{least:.2f}")
    table.add_row("in all", f"{report['ms_watched']:.2f}", "", f"{sum(report['least_ms'].values()):.2f}")
    whole(table)
    out.print(
        f"{report['ms']:.2f} ms per chunk when nothing is timed inside, {report['ms_without_index']:.2f} without an "
        f"index; compression is {report['ours_share']:.1%}, the index {report['index_share']:.1%} of it all "
        f"({report['strategy']}; means of {report['chunks']} chunks, compactions included)"
    )


def decode(report: dict[str, Any]) -> None:
    """Print the report of ``bench decode``: a row for each decoder."""
    table = Table("decoder", "x real time", "source frames/s", "sampled/s", "first chunk", "peak memory", box=None)
    for row in report["decoders"]:
        table.add_row(
            row["decoder"],
            f"{row['times_real_time']:.1f}",
            f"{row['source_frames_per_second']:.0f}",
            f"{row['sampled_per_second']:.1f}",
            f"{row['first_chunk_seconds']:.2f} s",
            f"{row['peak_mb']:.0f} MB",
        )
    whole(table)
    width, height = report["size"]
    out.print(
        f"{report['seconds']:g} s of H.264, {width}x{height}, 30 frames/s, {size(report['bytes'])}; "
        f"{report['fps']:g} frames/s sampled; medians of {report['repeats']}"
    )
    for fed in report["fed"]:
        limit = "decoding" if fed["busy"] < BUSY else "the engine"
        out.print(
            f"ingested from {fed['decoder']}: {fed['times_real_time']:.1f} x real time, the engine busy "
            f"{fed['busy']:.0%} of it; without waiting, {fed['engine_times_real_time']:.1f} x: {limit} is the limit"
        )


def memory(report: dict[str, Any]) -> None:
    """Print the report of ``bench memory``: a row for each strategy and share, and one share by kind of question."""
    ages = [*(f"≤{age:g}s" if age else "older" for age in report["ages"]), "never"]
    costs = ("cache", "index", "ms/chunk", "ms/question")
    table = Table("strategy", "budget", "tokens", "again", "past", "95 %", "now", *ages, *costs, box=None)
    for cell in report["cells"]:
        low, high = cell["backward_interval"]
        table.add_row(
            cell["strategy"],
            f"{cell['share']:.0%}",
            str(cell["max_tokens"]),
            str(cell.get("recall", 0)),
            f"{cell['backward']:.1%}",
            f"{low:.0%} to {high:.0%}",
            f"{cell['real_time']:.1%}",
            *("" if share is None else f"{share:.0%}" for share in cell["by_age"]),
            size(cell["peak_bytes"]),
            size(cell["index_bytes"]) if "index_bytes" in cell else "",
            f"{cell['ms_per_chunk']:.1f}",
            f"{cell['ms_per_question']:.1f}" if "ms_per_question" in cell else "",
        )
    whole(table)
    out.print()
    _kinds(report)
    for skipped in report["skipped"]:
        err.print(Text(f"{skipped['strategy']} at {skipped['share']:.0%} was left out: {skipped['reason']}"))
    out.print(
        f"{report['clips']} clips of {report['minutes']:g} min, {report['stream_tokens']} tokens each; budget: the "
        "most the cache ever holds; again: most stretches that a question was shown again; past: questions about what "
        "was shown before, now: about what is on screen"
    )
    for cell in report["cells"]:
        if changed := cell.get("real_time_changed"):
            out.print(
                f"{cell['strategy']} at {cell['share']:.0%}, looking again at {cell['recall']}: {changed} of "
                f"{cell['real_time_asked']} answers about now are others than without"
            )


def _kinds(report: dict[str, Any]) -> None:
    from kvvideo.bench.plots import middle

    share, kinds = middle(report), [*report["cells"][0]["by_kind"]]
    table = Table("strategy", "budget", "again", *kinds, box=None)
    for cell in report["cells"]:
        if cell["strategy"] == "full" or cell["share"] == share:
            shares = (f"{cell['by_kind'].get(kind, 0.0):.0%}" for kind in kinds)
            table.add_row(cell["strategy"], f"{cell['share']:.0%}", str(cell.get("recall", 0)), *shares)
    whole(table)


def recall(report: dict[str, Any]) -> None:
    """Print the report of ``bench recall``: a row for each strategy, share and length."""
    first = [column for count in report["first"] for column in (f"first {count}", "95 %")]
    table = Table("min", "strategy", "budget", "tokens", "questions", *first, "index", "ms/question", box=None)
    for cell in report["cells"]:
        intervals = [f"{low:.1%} to {high:.1%}" for low, high in cell["intervals"]]
        table.add_row(
            f"{cell['minutes']:g}",
            cell["strategy"],
            f"{cell['share']:.1%}",
            str(cell["max_tokens"]),
            str(cell["asked"]),
            *(
                text
                for pair in zip((f"{share:.1%}" for share in cell["among"]), intervals, strict=True)
                for text in pair
            ),
            size(cell["index_bytes"]),
            f"{cell['ms_per_question']:.1f}",
        )
    whole(table)
    for skipped in report["skipped"]:
        what = f"{skipped['strategy']} at {skipped['share']:.1%} of {skipped['minutes']:g} min"
        err.print(Text(f"{what} was left out: {skipped['reason']}"))
    out.print(
        f"{report['clips']} clips of each length, with 26 letters each; budget: the most the cache ever holds, of the "
        "stream; first: the chunk that a question is about is the best of one of the first so many events found"
    )


def stream(report: dict[str, Any]) -> None:
    """Print the report of ``bench stream`` as a table."""
    table = Table("chunk", "ms/chunk", "tokens seen", "live", "peak", "blocks", "free", "host MB", "GPU MB", box=None)
    for row in report["windows"]:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(table)
    if "time_ratio" in report:
        out.print(
            f"{report['mean_ms']} ms per chunk, compactions included; last window against the second: "
            f"{report['time_ratio']} x the time, {report['host_growth_mb']:+.1f} MB of host memory"
        )
    if "looking" in report:
        look = report["looking"]
        times = ", ".join(f"{ms:.1f} ms with {count}" for count, ms in look["first_token_ms"].items())
        out.print(
            f"chunks are found in {look['finding_ms']:.1f} ms; first token after {times} shown again, of "
            f"{look['chunk_tokens']} tokens each, decoding apart"
        )
        if look["chunk_ms"] is not None:
            out.print(f"each chunk shown again takes {look['chunk_ms']:.1f} ms")


def checkpoint(report: dict[str, Any]) -> None:
    """Print the report of ``bench checkpoint`` as a table."""
    table = Table("ms per minute of video", "mean", "median", box=None)
    for name, key in (
        ("without", "ms_per_minute"),
        ("with a checkpoint", "ms_per_minute_with"),
        ("difference", "cost_ms"),
        ("gathering it: the stream waits", "gathering_ms"),
        ("writing it, alone: in the background", "writing_ms"),
    ):
        table.add_row(name, f"{report[key]['mean']:.1f}", f"{report[key]['median']:.1f}")
    whole(table)
    out.print(
        f"a checkpoint a minute of video costs {report['cost_share']:.1%} of the time, of which the stream waits "
        f"{report['gathering_share']:.1%} (medians of {report['minutes']} minutes, each streamed with and without)"
    )
    out.print(
        f"one of {report['tokens']} tokens is {size(report['bytes'])}; predicted {size(report['predicted_bytes'])}"
    )


def start(report: dict[str, Any]) -> None:
    """Print the report of ``bench start`` as a table."""
    table = Table("stage", "seconds", box=None)
    for stage, seconds in {**report["seconds"], "in all": report["total"]}.items():
        table.add_row(stage, f"{seconds:.2f}")
    out.print(table)
