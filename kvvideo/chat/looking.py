"""Commands that show something: the cache, what is watched, what was said, the settings, the commands themselves."""

from dataclasses import replace
from typing import TYPE_CHECKING

from kvvideo.chat import commands
from kvvideo.chat.panel import Status, panel
from kvvideo.chat.player import Watch
from kvvideo.errors import ConfigError
from kvvideo.runs.playback import Playback
from kvvideo.sizes import format_size
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat


def stats(chat: "Chat", arguments: str) -> None:
    """Show what the cache holds, once."""
    layer = commands.parse_layer(arguments)

    def work(playback: Playback) -> Status:
        chat.player.refresh(playback)
        return replace(chat.player.status, timeline=tuple(playback.session.timeline(layer)), layer=layer)

    status = chat.player.call(work)
    chat.screen.show(lambda width: panel(status, width))


def dash(chat: "Chat", arguments: str) -> None:
    """Keep the panel on screen, of one layer or all, or take it away."""
    on, layer = commands.parse_dash(arguments)

    def work(playback: Playback) -> None:
        playback.session.timeline(layer)  # says so if there is no such layer
        chat.player.layer, chat.player.looked_at = layer, on
        chat.player.refresh(playback, timeline=True)

    chat.player.call(work)
    chat.screen.dash(on)


def watch(chat: "Chat", arguments: str) -> None:
    """Ask again and again as the video plays, or stop; list the questions."""
    order = commands.parse_watch(arguments)
    watches = chat.player.watches
    if order.off:
        number = order.number
        if number is not None and not 0 < number <= len(watches):
            raise ConfigError(f"watch: there is no number {number}; /watch lists them")
        gone = watches if number is None else watches[number - 1 : number]
        chat.player.watches = [w for w in watches if all(w is not one for one in gone)]
        for w in gone:
            chat.screen.say(f"not asked any more: {w.question}")
    elif order.question is not None:
        every = float(chat.settings["watch-every"])
        question = order.question
        chat.player.call(lambda playback: watches.append(Watch(question, every, playback.at + every)))
    if not watches:
        chat.screen.say("nothing is watched")
    for number, w in enumerate(chat.player.watches, 1):
        last = "; ".join(part for part in (w.answer or "(no answer)", w.again) if part)
        answer = "not asked yet" if w.answer is None else f"last: {last}"
        chat.screen.say(f"{number}. {w.question} (every {format_time(w.every)}; {answer})")


def history(chat: "Chat", _: str) -> None:
    """Show what was said."""
    if not chat.dialogue.said:
        chat.screen.say("nothing was said yet")
    for said in chat.dialogue.said:
        again = f"\n  ({said.again})" if said.again else ""
        chat.screen.say(f"[{format_time(said.at)}] {said.question}\n  {said.answer or '(no answer)'}{again}")


def show(chat: "Chat", _: str) -> None:
    """Show the model, the video and how the cache is bounded."""
    status = chat.player.status
    model = chat.player.call(lambda playback: playback.engine.config.model)
    length = "" if status.end is None else f", {format_time(status.end)} long"
    bound = "unbounded" if status.max_tokens is None else f"{status.budget} kept of {status.max_tokens}"
    chat.screen.say(f"{chat.name}{length}; at {format_time(status.position)}, {status.state}")
    chat.screen.say(f"model {model}; strategy {status.strategy}, {bound}; {format_size(status.cache.bytes)} held")
    trace = "become part of what is seen" if chat.remember else "leave no trace in the memory"
    chat.screen.say(f"questions {trace}")
    if chat.player.system:
        chat.screen.say(f"told before each: {chat.player.system}")


def show_help(chat: "Chat", arguments: str) -> None:
    """Show the commands, or one of them."""
    chosen = [commands.find(arguments.removeprefix("/"))] if arguments else commands.COMMANDS
    width = max(len(command.usage) for command in chosen)
    for command in chosen:
        chat.screen.say(f"{command.usage:<{width}}  {command.help}")
    if not arguments:
        chat.screen.say("anything else is a question; Ctrl-C stops an answer")
