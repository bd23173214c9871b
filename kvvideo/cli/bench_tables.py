"""Reports of ``kvvideo bench`` as tables."""

from typing import Any

from rich.table import Table
from rich.text import Text

from kvvideo.cli.render import err, out, size, whole

BUSY = 0.9
"""Share of the time from which on an engine counts as busy."""


def race(report: dict[str, Any]) -> None:
    """The report of ``bench ingest`` and ``bench ask``: a row for each rival and length."""
    asked = report["questions"] > 0
    head = ["chunks", "", "ms/chunk", "mean", "frames/s", "tokens seen", "held"]
    table = Table(*head, *(["first token, ms"] if asked else []), box=None)
    for row in sorted(report["rows"], key=lambda row: (row["chunks"], [*report["rivals"]].index(row["rival"]))):
        table.add_row(
            str(row["chunks"]), row["rival"], f"{row['ms']:.1f}", f"{row['mean_ms']:.1f}",
            f"{row['frames_per_second']:.1f}", str(row["tokens"]), size(row["held_bytes"]),
            *([f"{row['first_token_ms']:.1f}"] if asked else []),
        )  # fmt: skip
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
    """The report of ``bench compaction``: a row for each strategy, and for each kernel."""
    table = Table("strategy", "ms/chunk", "ms/compaction", "watching", "side state", "share of a step", box=None)
    for cost in report["strategies"]:
        table.add_row(
            cost["strategy"], f"{cost['ms']:.1f}", f"{cost['compaction_ms']:.2f}", f"{cost['watching_ms']:.2f}",
            f"{cost['state_ms']:.2f}", f"{cost['share']:.1%}",
        )  # fmt: skip
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
            kernel["name"], f"{1000 * kernel['ms']:.0f}", "" if reference is None else f"{1000 * reference:.0f}",
            f"{kernel['bytes'] / 1e6:.2f}", f"{kernel['operations'] / 1e6:.0f}", f"{1000 * kernel['limit_ms']:.1f}",
            f"{kernel['fraction']:.0%}",
        )  # fmt: skip
    whole(table)
    rates = ", ".join(f"{rate:g} TFLOP/s in {unit}" for unit, rate in kernels["teraflops"].items())
    out.print(
        f"{kernels['kv_heads']} KV heads of {kernels['head_dim']} x {kernels['tokens']} tokens in {kernels['dtype']}; "
        f"limits as measured here: {kernels['gigabytes_per_second']} GB/s copying, {rates}"
    )


def profile(report: dict[str, Any]) -> None:
    """The report of ``bench profile``: a row for each part."""
    table = Table("part", "ms/chunk", "share", "products alone, ms", box=None)
    for name, ms in report["parts"].items():
        least = report["least_ms"].get(name)
        table.add_row(name, f"{ms:.2f}", f"{ms / report['ms_watched']:.1%}", "" if least is None else f"{least:.2f}")
    table.add_row("in all", f"{report['ms_watched']:.2f}", "", f"{sum(report['least_ms'].values()):.2f}")
    whole(table)
    out.print(
        f"{report['ms']:.2f} ms per chunk when nothing is timed inside; compression is {report['ours_share']:.1%} "
        f"({report['strategy']}; means of {report['chunks']} chunks, compactions included)"
    )


def decode(report: dict[str, Any]) -> None:
    """The report of ``bench decode``: a row for each decoder."""
    table = Table("decoder", "x real time", "source frames/s", "sampled/s", "first chunk", "peak memory", box=None)
    for row in report["decoders"]:
        table.add_row(
            row["decoder"], f"{row['times_real_time']:.1f}", f"{row['source_frames_per_second']:.0f}",
            f"{row['sampled_per_second']:.1f}", f"{row['first_chunk_seconds']:.2f} s", f"{row['peak_mb']:.0f} MB",
        )  # fmt: skip
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
