"""The text around the frames: the one place that decides how a model is told about time.

A stream is one user turn that never ends: each chunk adds its clock time and its frames. A question
closes that turn, on a fork, so the stream itself never sees it. The bundled model is trained on
exactly these strings.
"""

from kvvideo.times import format_time

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


def chunk_text(start: float) -> str:
    """Text of the chunk that begins at ``start`` seconds: its clock time, then its frames."""
    return f"<{format_time(start)}>{VIDEO}"


def question_text(question: str) -> str:
    """Text that asks ``question`` about all that came before, up to the model's turn to speak."""
    return f"\n{question}<|im_end|>\n<|im_start|>assistant\n"


# Of the baseline that remembers in words; the bundled model was not trained on these.

NOTES = "Notes on the video so far:\n"

CAPTION = "Describe in one sentence what is shown."

SUMMARISE = "Summarise these notes in one or two sentences. Keep who and what was seen, and when."


def note(start: float, end: float, words: str) -> str:
    """One line of notes about the stretch from ``start`` to ``end`` seconds."""
    # What a model reads off the screen must not become one of its own markers.
    line = " ".join(words.split()).replace("<|", "< |")
    return f"<{format_time(start)}-{format_time(end)}> {line}\n"
