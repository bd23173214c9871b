"""``/find``: the moments so far that words are found at."""

from typing import TYPE_CHECKING

from kvvideo.errors import ConfigError
from kvvideo.outputs.evidence import clock
from kvvideo.runs.find import COUNT, moments

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat


def find(chat: "Chat", arguments: str) -> None:
    """List the moments that words are found at, best first, with their scores."""
    if not arguments:
        raise ConfigError("write what to find: /find the letter K")

    found = chat.player.call(lambda playback: moments(playback.session, arguments, COUNT))
    if not found:
        raise ConfigError("there is nothing to find words by yet: a memory of an older version has nothing")
    for rank, (hit, _, score) in enumerate(found, 1):
        chat.screen.say(f"{rank}. {clock((hit.start, hit.end))} (score {score:.2f})")
