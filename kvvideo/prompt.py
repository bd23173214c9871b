"""The text around the frames: the one place that decides how a model is told about time.

A stream is one user turn that never ends: each chunk adds its clock time and its frames. A question
closes that turn, on a fork, so the stream itself never sees it. The bundled model is trained on
exactly these strings.
"""

from collections.abc import Iterable

from kvvideo.times import format_time

Turn = tuple[str, str]
"""A question and its answer."""

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


def chunk_text(start: float, words: str = "") -> str:
    """Return the text of the chunk that begins at ``start`` seconds: its clock time, what is said in it, its frames."""
    said = plain(" ".join(words.split())).replace('"', "'")
    return f'<{format_time(start)}>"{said}"{VIDEO}' if said else f"<{format_time(start)}>{VIDEO}"


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
