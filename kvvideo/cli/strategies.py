"""``kvvideo strategies``: what can be chosen."""

from kvvideo import compression


def command() -> None:
    """List the strategies that decide what the cache keeps."""
    from kvvideo.cli import render

    policies = {name: compression.load(name) for name in compression.strategies()}
    rows = [(name, policy.summary, policy.source) for name, policy in policies.items()]
    render.listing(("strategy", "what it does", "source"), rows)
