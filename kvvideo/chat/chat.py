"""A chat about a video: each line is a question, or a command that ``HANDLERS`` does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvvideo.chat import asking, changing, commands, files, finding, looking, moving
from kvvideo.chat.commands import Value
from kvvideo.chat.dialogue import Dialogue
from kvvideo.chat.player import Cancelled, Player
from kvvideo.errors import KvvideoError
from kvvideo.prompt import well_formed
from kvvideo.runs.playback import Arrival, Playback
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.chat.screen import Screen

_PATIENCE = 1.0
"""Seconds after which whoever waits is told that it goes on."""


class Chat:
    """A dialogue about what a player plays.

    Args:
        player: plays the video.
        screen: shows what is said.
        name: of the video.
        remember: let what is said become part of what the model has seen.
        load: opens a memory file on the engine of a playback, which it closes.
        file: the memory file that is played, if it is one.

    Attributes:
        dialogue: what was said.
        settings: those of ``/set``, by name.
        file: the memory file that was loaded or saved last, if there is one.
        stamp: facts of that file when that was done, see ``files.stamp``.
        leaving: True once the person wants to leave.
        failed: exit code of the first line that could not be done; 0 if there was none.
    """

    def __init__(
        self,
        player: Player,
        screen: "Screen",
        name: str,
        remember: bool,
        load: Callable[[Playback, Path], Playback],
        file: Path | None = None,
    ) -> None:
        self.player, self.screen, self.name = player, screen, name
        self.remember, self.open = remember, load
        self.dialogue = Dialogue()
        self.settings: dict[str, Value] = {setting.name: setting.default for setting in commands.SETTINGS}
        self.settings["dialogue"] = player.call(lambda playback: playback.engine.knows_dialogue)
        self.file, self.stamp = file, None if file is None else files.stamp(file)
        self.dialogue.adopt(player.call(lambda playback: playback.events))
        self.leaving = False
        self.failed = 0
        self._begun = time.monotonic()
        self._goal: tuple[str, float] | None = None  # what is on its way, and to which moment
        player.waiting = self._wait

    def handle(self, line: str) -> None:
        """Do what ``line`` asks for; an error is shown, not raised."""
        line = well_formed(line)
        if not line.strip():
            return
        self._begun, self._goal = time.monotonic(), None
        try:
            parsed = commands.parse(line)
            if parsed is None:
                asking.ask(self, commands.question_in(line))
            else:
                HANDLERS[parsed.name](self, parsed.arguments)
        except Cancelled:
            self.screen.end()
            self.screen.say("stopped")
        except KvvideoError as error:
            self.fail(error)
        finally:
            self.screen.waiting("")

    def fail(self, error: KvvideoError) -> None:
        """Show ``error``, and exit with its code in the end if it is the first one."""
        self.screen.problem(str(error))
        self.failed = self.failed or error.exit_code

    def leave(self, _: str) -> None:
        """End the chat after this line."""
        self.leaving = True

    def on_chunk(self, playback: Playback, goal: float | None = None, name: str = "") -> Callable[[], None]:
        """Return what to do after each chunk on the way to ``goal``, called ``name``: look for a stop, and tell."""
        self._goal = None if goal is None else (name, goal)

        def on_chunk() -> None:
            self.player.refresh(playback)
            self.player.check()

        return on_chunk

    def arrived(self, arrival: Arrival, wanted: float) -> None:
        """Say where the stream stands now that it was to go to the moment ``wanted``, in seconds."""
        self._goal, self._begun = None, time.monotonic()  # what comes next is an answer
        short = "" if arrival.exact else f", the nearest to {format_time(wanted)} there is"
        self.screen.say(f"at {format_time(arrival.at)}{short}: {moving.way(arrival)}")

    def _wait(self) -> None:
        """Tell the person who waits that it goes on, and how far it is."""
        if (passed := time.monotonic() - self._begun) < _PATIENCE:
            return
        far = f"{passed:.0f} s"
        if self._goal is not None:
            name, moment = self._goal
            far = f"{name}at {format_time(self.player.status.position)}, on the way to {format_time(moment)}"
        self.screen.waiting(f"… {far}; Ctrl-C stops")


HANDLERS: dict[str, Callable[[Chat, str], None]] = {
    "play": moving.play,
    "pause": moving.pause,
    "step": moving.step,
    "at": asking.at,
    "find": finding.find,
    "seek": moving.seek,
    "stats": looking.stats,
    "dash": looking.dash,
    "strategy": changing.strategy,
    "compare": asking.compare,
    "budget": changing.budget,
    "frame": files.frame,
    "watch": looking.watch,
    "undo": changing.undo,
    "history": looking.history,
    "set": changing.change_setting,
    "show": looking.show,
    "save": files.save,
    "load": files.load,
    "export": files.export,
    "help": looking.show_help,
    "bye": Chat.leave,
}
"""Functions that do the commands of ``commands.COMMANDS``, by name; each is given what follows the name."""
