"""Commands that change how the chat goes on: the strategy, the budget, the settings; and that take back."""

from dataclasses import replace
from typing import TYPE_CHECKING

from kvvideo.chat import commands
from kvvideo.chat.moving import way
from kvvideo.errors import ConfigError
from kvvideo.runs.playback import Arrival, Playback

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat


def strategy(chat: "Chat", arguments: str) -> None:
    """Show the strategies, or let another decide from here on."""
    from kvvideo.compression import load, strategies
    from kvvideo.session import BASELINES

    if not arguments:
        current = chat.player.status.strategy
        for name in (name for name in strategies() if name not in BASELINES):
            chat.screen.say(f"{'*' if name == current else ' '} {name}: {load(name).summary}")
        return

    def work(playback: Playback) -> None:
        playback.switch(replace(playback.engine.config.cache, strategy=arguments))
        chat.dialogue.note_event()

    chat.player.call(work)
    chat.screen.say(f"{arguments} decides from here on; what is held stays")


def budget(chat: "Chat", arguments: str) -> None:
    """Show how many tokens a compaction keeps, or change it."""
    if not arguments:
        status = chat.player.status
        bound = f"a compaction keeps {status.budget} tokens, and comes when {status.max_tokens} are held"
        pool = f"the pool has {status.blocks_total} blocks, {status.blocks_free} free"
        chat.screen.say(f"{'no bound' if status.max_tokens is None else bound}; {pool}")
        return
    tokens = commands.parse_count(arguments)

    def work(playback: Playback) -> Arrival:
        cache = playback.engine.config.cache
        if cache.schedule(playback.engine.block_size) is None:
            raise ConfigError(f"budget: strategy {cache.strategy!r} keeps everything; start anew with another")
        wanted = cache.with_budget(tokens)
        try:
            return playback.restart(wanted, chat.on_chunk(playback, playback.at))
        finally:
            chat.dialogue.keep_events(len(playback.events))

    arrival = chat.player.call(work)
    kept = chat.player.status.budget
    rounded = "" if kept == tokens else f", {tokens} in whole blocks"
    chat.screen.say(f"keeping {kept} tokens{rounded}: {way(arrival)}")


def undo(chat: "Chat", _: str) -> None:
    """Take back the last question, or the last switch."""
    dialogue = chat.dialogue
    last = dialogue.events[-1] if dialogue.events else None
    if last is None or last.after < len(dialogue.said):
        chat.screen.say(f"taken back: {dialogue.undo().question}")
        return

    def work(playback: Playback) -> Arrival:
        try:
            return playback.undo(chat.on_chunk(playback, playback.at))
        finally:
            dialogue.keep_events(len(playback.events))

    which = [i for i, said in enumerate(dialogue.said) if any(said is one for one in last.said)]
    back = way(chat.player.call(work))
    dialogue.said = [said for i, said in enumerate(dialogue.said) if i not in which]
    if which:
        chat.screen.say(f"taken back: {last.said[-1].question} ({back})")
    else:
        chat.screen.say(f"{chat.player.status.strategy} decides again ({back})")


def change_setting(chat: "Chat", arguments: str) -> None:
    """Show the settings, or change one."""
    change = commands.parse_set(arguments)
    if change is not None:
        chat.settings[change[0]] = change[1]
    for setting in commands.SETTINGS:
        if change is None or setting.name == change[0]:
            value = commands.format_setting(setting, chat.settings[setting.name])
            chat.screen.say(f"{setting.name} = {value}  ({setting.help})")
