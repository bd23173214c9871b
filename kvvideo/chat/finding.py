"""``/find``: the moments so far that words are found at."""

from typing import TYPE_CHECKING

from kvvideo.errors import ConfigError
from kvvideo.outputs.evidence import clock
from kvvideo.runs.find import COUNT, question_of, score_of
from kvvideo.runs.playback import Playback
from kvvideo.types import Hit

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat


def find(chat: "Chat", arguments: str) -> None:
    """List the moments that words are found at, best first, with their scores."""
    if not arguments:
        raise ConfigError("write what to find: /find the letter K")

    def work(playback: Playback) -> tuple[list[Hit], int]:
        (hits,) = playback.session.find([question_of(arguments)], COUNT)
        return hits, len(playback.session.index)

    hits, chunks = chat.player.call(work)
    for rank, hit in enumerate(hits, 1):
        chat.screen.say(f"{rank}. {clock((hit.start, hit.end))} (score {score_of(hit.score, chunks):.2f})")
