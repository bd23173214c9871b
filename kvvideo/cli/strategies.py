"""``kvvideo strategies``: list what can be chosen."""

from kvvideo import compression
from kvvideo.cli.options import Json


def command(json_output: Json = False) -> None:
    """List the strategies that decide what the cache keeps.

    Examples:
        kvvideo strategies
        kvvideo strategies --json
    """
    from kvvideo.cli import render
    from kvvideo.outputs import jsons
    from kvvideo.outputs.writer import to_stdout

    if json_output:
        policies, unusable = compression.load_all()
        listed = [
            {
                "strategy": name,
                "summary": policy.summary,
                "source": policy.source,
                "options": [option.as_dict() for option in policy.options().values()],
            }
            for name, policy in policies.items()
        ]
        to_stdout(jsons.line({"type": "strategies", "schema": 1, "strategies": listed, "unusable": unusable}))
        return
    described, unusable = compression.described()
    render.listing(("strategy", "what it does", "source"), [(name, *about) for name, about in described.items()])
    for line in unusable:
        render.err.print(render.clean(line), markup=False, soft_wrap=True)
