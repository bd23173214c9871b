"""Questions to the model: now, as of another moment, and under other strategies."""

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvvideo.chat import commands
from kvvideo.chat.dialogue import Said
from kvvideo.chat.hints import little_held
from kvvideo.chat.moving import check_within, way
from kvvideo.chat.player import Cancelled
from kvvideo.errors import ConfigError, EngineError, KvvideoError
from kvvideo.prompt import Turn
from kvvideo.runs.playback import Playback

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat

_DIALOGUE_TOKENS = 2048
"""Tokens of the dialogue that the model is told again with each question, at most."""
_STOPPED = "stopped"
"""Finish reason of an answer that the person stopped."""
_ENDED = ("stop", "length", _STOPPED)
"""Finish reasons of answers that are as they should be; any other one is an error message."""


def ask(chat: "Chat", question: str) -> None:
    """Ask where the video stands."""

    def work(playback: Playback) -> tuple[Said, str, str | None, KvvideoError | None]:
        said, reason = _answer(chat, playback, question)
        warning = problem = None
        if chat.settings["hints"]:
            session = playback.session
            warning = little_held([question, said.answer], session.timeline(), session.end)
        if chat.remember and playback.session.chunks:
            try:
                playback.remember([(question, said.answer)])
                said = replace(said, remembered=True)
            except KvvideoError as error:
                problem = error
        return said, reason, warning, problem

    _note(chat, *chat.player.call(work))


def at(chat: "Chat", arguments: str) -> None:
    """Ask as of another moment, and come back."""
    moment, question = commands.split_at(arguments)

    def work(playback: Playback) -> tuple[Said, str]:
        check_within(playback, moment)
        with playback.visit(moment, chat.on_chunk(playback, moment)) as arrival:
            chat.arrived(arrival, moment)
            said, reason = _answer(chat, playback, question)
        return replace(said, since=way(arrival)), reason

    _note(chat, *chat.player.call(work))


def compare(chat: "Chat", arguments: str) -> None:
    """Ask the last question, or another, under several strategies."""
    names, question = commands.parse_compare(arguments)
    if question is None and not chat.dialogue.said:
        raise ConfigError("nothing was asked yet; write a question: /compare h2o streaming -- what happened?")
    again = tuple(chat.dialogue.said[-1:]) if question is None else ()
    asked = question or again[0].question

    def work(playback: Playback) -> None:
        caches = [replace(playback.engine.config.cache, strategy=name) for name in names]
        for cache in caches:
            on_chunk = chat.on_chunk(playback, playback.at, f"{cache.strategy}: ")
            with playback.anew(cache, on_chunk) as arrival:
                told, said = _told(chat, playback, again), Said(playback.at, asked, "", way(arrival))
                with closing(playback.stream(asked, dialogue=told, **_sampling(chat, playback))) as answers:
                    for answer in answers:
                        said = replace(said, answer=answer.text, looked_at=answer.looked_at)
                        chat.player.check()
            notes = "; ".join(note for note in (said.since, said.again) if note)
            chat.screen.say(f"{cache.strategy}: {' '.join(said.answer.split()) or '(no answer)'}  ({notes})")

    chat.player.call(work)


def _answer(chat: "Chat", playback: Playback, question: str) -> tuple[Said, str]:
    """Ask, in the player's thread; return what was said, and why the answer ended."""
    answers = playback.stream(question, dialogue=_told(chat, playback), **_sampling(chat, playback))
    chat.screen.begin(playback.at, question)
    answer, shown = None, ""
    try:
        for answer in answers:
            # A character whose bytes have not all come yet.
            text = answer.text.rstrip("\N{REPLACEMENT CHARACTER}") if not answer.finish_reason else answer.text
            if text.startswith(shown):
                chat.screen.piece(text[len(shown) :])
                shown = text
            chat.player.check()
    except (Cancelled, KvvideoError) as error:
        # What there is of it is kept.
        if answer is None:
            if not isinstance(error, Cancelled):
                chat.screen.end()
            raise
        answer = replace(answer, finish_reason=_STOPPED if isinstance(error, Cancelled) else str(error))
    finally:
        answers.close()
    assert answer is not None
    chat.screen.end()
    said = Said(
        playback.at,
        question,
        answer.text,
        seconds=answer.seconds,
        looked_at=answer.looked_at,
        system=chat.player.system,
    )
    return said, answer.finish_reason


def _told(chat: "Chat", playback: Playback, without: tuple[Said, ...] = ()) -> list[Turn]:
    """Return the dialogue that the model is told again: without ``without``, and what its stream has in it here."""
    if not chat.settings["dialogue"]:
        return []
    tokenizer, chunks = playback.engine.tokenizer, playback.session.chunks
    seen = chat.dialogue.remembered(sum(event.chunks <= chunks for event in playback.events))
    return chat.dialogue.turns(_DIALOGUE_TOKENS, lambda text: len(tokenizer(text).input_ids), [*seen, *without])


def _sampling(chat: "Chat", playback: Playback) -> dict[str, Any]:
    return {
        "system": chat.player.system,
        "max_tokens": int(chat.settings["max-answer-tokens"]),
        "temperature": float(chat.settings["temperature"]),
        "seed": playback.engine.config.seed,
    }


def _note(
    chat: "Chat", said: Said, reason: str, warning: str | None = None, problem: KvvideoError | None = None
) -> None:
    """Note what was said, and show what there is to know about it."""
    chat.dialogue.add(said)
    if said.remembered:
        chat.dialogue.note_event(said)
    if reason == "length":
        chat.screen.say("… cut here; '/set max-answer-tokens 512' allows longer answers")
    elif reason == _STOPPED:
        chat.screen.say("… stopped")
    elif reason not in _ENDED:
        chat.fail(EngineError(f"… cut here: {reason}"))
    if said.again:
        chat.screen.say(said.again)
    if warning:
        chat.screen.say(warning)
    if problem:
        chat.fail(type(problem)(f"this is not remembered: {problem}"))
