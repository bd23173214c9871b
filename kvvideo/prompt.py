"""The text around the frames: the one place that decides how a model is told about time.

A stream is one user turn that never ends: each chunk adds its clock time, the words spoken in it, and its frames. A
question closes that turn, on a fork, so the stream itself never sees it. The bundled model is trained on exactly these
strings, but for the words.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable

from kvvideo.times import format_time

Turn = tuple[str, str]
"""A question and its answer."""

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


WORDS_TOKENS, WORDS_SECONDS = 64, 4.0
"""Most tokens of the words of a chunk of so many seconds: our choice. Fast speech is some 5 tokens a second in English,
and twice that in scripts with more tokens a word; but the words of a subtitle all come where it begins, and of dense
ones three of 20 tokens begin in four seconds. The frames of such a chunk are 512 tokens by default."""


def chunk_text(start: float, words: str = "") -> str:
    """Return the text of the chunk that begins at ``start`` seconds: its clock time, its words if any, its frames."""
    said = _one_line(words)
    return f"<{format_time(start)}>" + (f'"{said}"' if said else "") + VIDEO


def words_tokens(seconds: float) -> int:
    """Return the most tokens, quotes included, of the words of a chunk of so many ``seconds``."""
    return max(WORDS_TOKENS, round(WORDS_TOKENS / WORDS_SECONDS * seconds))


def bounded(words: str, seconds: float, count: Callable[[str], int]) -> str:
    """Return the words that a chunk of so many ``seconds`` has room for; ``…`` stands for the rest.

    They are cut between two words, or inside of one where that is too long itself.

    Args:
        words: of the chunk.
        seconds: length of the chunk.
        count: returns the tokens of a text.
    """
    said, most = _one_line(words), words_tokens(seconds)

    def size(length: int) -> int:
        return count(f'"{said[:length]}…"')

    # A token is a byte at least.
    if len(said.encode()) + 2 <= most or count(f'"{said}"') <= most:
        return said
    blanks = [index for index, character in enumerate(said) if character == " "]
    for ends in (blanks, range(1, len(said))):
        fitting = bisect_right(ends, most, key=size)
        # A longer text may have a token less.
        while fitting and size(ends[fitting - 1]) > most:
            fitting -= 1
        if fitting:
            return f"{said[: ends[fitting - 1]]}…"
    return ""


def _one_line(words: str) -> str:
    """Return ``words`` as they stand between quotes."""
    return " ".join(plain(words).replace('"', "'").split())


def question_text(question: str) -> str:
    """Return the text that asks ``question`` about all that came before, up to the model's turn to speak."""
    return f"\n{plain(question)}<|im_end|>\n<|im_start|>assistant\n"


def system_text(words: str) -> str:
    """Return the system turn that stands before a question, and the dialogue before it; empty if there are no words.

    It closes the user's turn that the frames are in, and opens the one of the question. The chat template of Qwen2.5-VL
    has system turns in any place.
    """
    return f"<|im_end|>\n<|im_start|>system\n{plain(words)}<|im_end|>\n<|im_start|>user" if words else ""


def dialogue_text(turns: Iterable[Turn]) -> str:
    """Return the text of questions that were answered, up to the user's turn to speak."""
    return "".join(f"{question_text(asked)}{plain(said)}<|im_end|>\n<|im_start|>user\n" for asked, said in turns)


def plain(words: str) -> str:
    """Return ``words`` in which nothing is one of the model's own markers."""
    return words.replace("<|", "< |")


def well_formed(text: str) -> str:
    """Return ``text`` without the half characters that stand for bytes that are not UTF-8: no tokenizer takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# What tasks ask.

DESCRIBE = "Describe in one sentence what is shown now."


def happened(start: float, end: float) -> str:
    """Return the question about the stretch from ``start`` to ``end`` seconds."""
    return f"Say in one or two sentences what happened from {format_time(start)} to {format_time(end)}."


# Of the baseline that remembers in words; the bundled model was not trained on these, nor on what tasks ask.

NOTES = "Notes on the video so far:\n"

CAPTION = "Describe in one sentence what is shown."

SUMMARISE = "Summarise these notes in one or two sentences. Keep who and what was seen, and when."


def note(start: float, end: float, words: str) -> str:
    """Return one line of notes about the stretch from ``start`` to ``end`` seconds."""
    return f"<{format_time(start)}-{format_time(end)}> {plain(' '.join(words.split()))}\n"
