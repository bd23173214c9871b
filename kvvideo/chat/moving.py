"""Commands that move the video: on, and to another moment."""

from typing import TYPE_CHECKING

from kvvideo.chat import commands
from kvvideo.errors import ConfigError
from kvvideo.outputs.figures import counted
from kvvideo.runs.playback import Arrival, Playback
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat

_SLACK = 1e-3
"""Seconds by which a moment may be after the end: times are shown in milliseconds."""


def play(chat: "Chat", arguments: str) -> None:
    """Let the video go on."""
    speed = commands.parse_speed(arguments) if arguments else None

    def work(playback: Playback) -> None:
        if playback.ended:
            raise ConfigError(f"there is nothing after {format_time(playback.at)}; /seek goes to an earlier moment")
        chat.player.play(speed)

    chat.player.call(work)


def pause(chat: "Chat", _: str) -> None:
    """Stop the video where it is."""
    chat.player.call(lambda _: chat.player.pause())


def step(chat: "Chat", arguments: str) -> None:
    """Ingest the next chunk, or the next few."""
    wanted = commands.parse_count(arguments)

    def work(playback: Playback) -> float:
        chat.player.pause()
        for _ in range(wanted):
            if not chat.player.step():
                raise ConfigError(f"there is nothing after {format_time(playback.at)}")
            chat.on_chunk(playback)()
        return playback.at

    chat.screen.say(f"at {format_time(chat.player.call(work))}")


def seek(chat: "Chat", arguments: str) -> None:
    """Go to another moment and pause there."""
    moment = commands.parse_moment(arguments)

    def work(playback: Playback) -> None:
        if playback.source is not None and not playback.source.replayable:
            raise ConfigError("a live source cannot be left for another moment; '/at TIME question' looks back")
        check_within(playback, moment)
        # At full speed it would be gone again before anything is asked.
        chat.player.pause()
        try:
            chat.arrived(playback.go(moment, chat.on_chunk(playback, moment)), moment)
        finally:
            chat.dialogue.keep_events(len(playback.events))

    chat.player.call(work)


def check_within(playback: Playback, moment: float) -> None:
    """Refuse a moment after the end, where that is known: going there would take in all there is first.

    Raises:
        ConfigError: if ``moment``, in seconds, is after the end.
    """
    end = playback.length()
    if end is not None and moment > max(end, playback.at) + _SLACK:
        raise ConfigError(f"there is nothing at {format_time(moment)}; it ends at {format_time(end)}")


def way(arrival: Arrival) -> str:
    """Return in words from where a moment was reached, and what that cost."""
    since = "the beginning" if arrival.since is None else f"the memory of {format_time(arrival.since)}"
    return f"from {since}, {counted(arrival.chunks, 'chunk')} replayed in {arrival.seconds:.1f} s"
