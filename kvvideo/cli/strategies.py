"""``kvvideo strategies``: what can be chosen."""

from kvvideo import compression


def command() -> None:
    """List the strategies that decide what the cache keeps."""
    from rich.table import Table

    from kvvideo.cli import render

    table = Table("strategy", "what it does", "source", box=None, header_style="bold")
    for name in compression.strategies():
        policy = compression.load(name)
        table.add_row(name, policy.summary, policy.source)
    if render.out.is_terminal:
        render.out.print(table)
    else:
        render.whole(table)
