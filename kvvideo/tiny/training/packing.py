"""One stream and every question asked along it, as one sequence.

At inference a question is asked on a fork: the stream up to some frame, then the question. Training on
each fork by itself would read the stream again for each of them. Here the stream is read once and the
forks lie after it, each seeing only the stream up to its point and itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvvideo import prompt
from kvvideo.tiny import model

Ints = npt.NDArray[np.int64]

MARKS = 3
"""Questions that the hints ask of a video token."""

NOTHING = (-1, -1)
"""Letter and word of a chunk whose words are about no letter."""

ENDING = 3
"""Last tokens of a chunk's text, the word about a letter and what closes the line: they should know both."""

SIDES = np.tile([0, 0, 1, 2, 2], model.ROWS)
"""Side, 0 to 2, that each of a pair's tokens shows."""

VISION_START, VISION_END = prompt.VIDEO.split("<|video_pad|>")


@dataclass(frozen=True)
class ChunkPlan:
    """A chunk of a stream: its start in seconds, and the stored grids that show its frames.

    ``grids`` are indices of frame pairs in a bank; ``spacing`` is the distance of two frame pairs in
    M-RoPE's temporal positions, tokens per second x seconds per pair. ``words`` are said in it, ``about`` the letter
    and with the word of these indices. ``marks`` are what the hints ask of its pairs, ``[grids, sides, MARKS]``: how
    often the letter at a side has come so far, the letter that came before it, and the place; -1 where that is not
    asked.
    """

    start: float
    grids: Ints
    spacing: float = 2.0
    words: str = ""
    about: tuple[int, int] = NOTHING
    marks: Ints | None = None


@dataclass(frozen=True)
class Ask:
    """A question asked once the first ``grids`` frame pairs of chunk ``chunk`` were seen.

    ``letter`` is the index of the letter it is about, -1 if it names none. ``before`` is what was asked and answered
    before it. ``clock`` are the seconds written before the chunk that it names by its time, -1 if it names none.
    """

    chunk: int
    grids: int
    q: str
    answer: str
    kind: int
    age: float
    letter: int = -1
    before: tuple[prompt.Turn, ...] = ()
    clock: int = -1


@dataclass
class Packed:
    """A stream of ``S`` tokens and its forks' ``F`` tokens.

    Attributes:
        ids: ``[S + F]`` tokens; video tokens are the placeholder.
        positions: ``[3, S + F]``, M-RoPE.
        cells: ``[S + F]`` index of a video token's embedding in the bank, ``grid * TOKENS + cell``; -1
            for text.
        limit: ``[F]`` number of the stream's tokens that a fork's token may see.
        fork: ``[F]`` the fork that a token belongs to.
        labels: ``[F]`` the token that should follow; -1 where that is not asked for.
        asks: the questions, by fork.
        video_starts: ``[chunks]`` stream index of each chunk's first video token.
        times: ``[S]`` seconds that are written before the chunk a token belongs to; 0 for the opening.
        marks: ``[S, MARKS]``; as in ``ChunkPlan``, for the video tokens at each side.
        about: ``[S, 2]``; as in ``ChunkPlan``, for the last tokens of the text before the video tokens.
    """

    ids: Ints
    positions: Ints
    cells: Ints
    limit: Ints
    fork: Ints
    labels: Ints
    asks: list[Ask]
    video_starts: Ints
    times: Ints
    marks: Ints
    about: Ints


class Encoder:
    """Token ids of strings, remembered, since streams repeat theirs."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._known: dict[str, Ints] = {}

    def __call__(self, text: str) -> Ints:
        """Return the token ids of ``text``."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = np.array(self._encode(text), np.int64)
        return found


def grid_positions(grids: int, spacing: float) -> Ints:
    """Return the M-RoPE positions ``[3, grids * TOKENS]`` of a chunk's video tokens, relative to its first."""
    index = np.indices((grids, model.ROWS, model.COLUMNS)).reshape(3, -1)
    index[0] = (index[0] * spacing).astype(np.int64)
    return index


def pack(chunks: list[ChunkPlan], asks: list[Ask], encode: Encoder, offset: int = 0) -> Packed:
    """Lay out a stream and its forks; positions after the opening are shifted by ``offset``."""
    opening = encode(prompt.OPENING)
    pad = int(encode("<|video_pad|>")[0])
    end = encode("<|im_end|>")
    close = encode(VISION_END)
    ids, positions, cells = [opening], [_text_positions(0, len(opening))], [np.full(len(opening), -1)]
    at, position = len(opening), len(opening) + offset
    starts, video_starts, video_positions = [], [], []
    marks, about = [np.full((len(opening), MARKS), -1)], [np.full((len(opening), 2), -1)]
    for chunk in chunks:
        text = encode(prompt.chunk_text(chunk.start, chunk.words).removesuffix(prompt.VIDEO) + VISION_START)
        count = len(chunk.grids) * model.TOKENS
        video = grid_positions(len(chunk.grids), chunk.spacing) + position + len(text)
        after = int(video.max()) + 1
        starts.append(at)
        video_starts.append(at + len(text))
        video_positions.append(position + len(text))
        ids += [text, np.full(count, pad), close]
        positions += [_text_positions(position, len(text)), video, _text_positions(after, len(close))]
        cell = (chunk.grids[:, None] * model.TOKENS + np.arange(model.TOKENS)).reshape(-1)
        cells += [np.full(len(text), -1), cell, np.full(len(close), -1)]
        own = np.full((count, MARKS), -1) if chunk.marks is None else chunk.marks[:, SIDES].reshape(count, MARKS)
        marks += [np.full((len(text), MARKS), -1), own, np.full((len(close), MARKS), -1)]
        own = np.full((len(text) + count + len(close), 2), -1)
        own[len(text) - ENDING : len(text)] = chunk.about
        about.append(own)
        at += len(text) + count + len(close)
        position = after + len(close)
    limits, forks, labels = [], [], []
    for number, ask in enumerate(asks):
        head = np.concatenate([close, encode(prompt.dialogue_text(ask.before) + prompt.question_text(ask.q))])
        answer = np.concatenate([encode(ask.answer), end])
        tokens = np.concatenate([head, answer[:-1]])
        after = video_positions[ask.chunk] + _span(ask.grids, chunks[ask.chunk].spacing)
        ids.append(tokens)
        positions.append(_text_positions(after, len(tokens)))
        limits.append(np.full(len(tokens), video_starts[ask.chunk] + ask.grids * model.TOKENS))
        forks.append(np.full(len(tokens), number))
        label = np.full(len(tokens), -1)
        label[len(head) - 1 :] = answer
        labels.append(label)
    stream = at
    every = np.concatenate(ids)
    cells.append(np.full(len(every) - stream, -1))
    return Packed(
        ids=every,
        positions=np.concatenate(positions, axis=1),
        cells=np.concatenate(cells),
        limit=_join(limits),
        fork=_join(forks),
        labels=_join(labels),
        asks=asks,
        video_starts=np.array(video_starts),
        times=np.repeat([0, *(int(chunk.start) for chunk in chunks)], np.diff([0, *starts, stream])),
        marks=np.concatenate(marks),
        about=np.concatenate(about),
    )


@dataclass
class Batch:
    """Packed streams side by side, padded; ``B`` streams of ``S`` and forks of ``F`` tokens.

    Attributes:
        ids: ``[B, S + F]``; positions: ``[3, B, S + F]``; cells: ``[B, S + F]``.
        times: ``[B, S]``, marks: ``[B, S, MARKS]``, about: ``[B, S, 2]``; as in ``Packed``.
        limit, fork: ``[B, F]``; padding belongs to fork -1.
        where: ``[N]`` flat index into ``B x (S + F)`` of each token whose follower is asked for.
        targets: ``[N]`` those followers.
        question: ``[N]`` the question each belongs to, counted over the batch.
        kinds, ages, sizes, letters, clocks: ``[Q]`` of each question: its kind, its age in seconds (-1: not
            seen), the chunks of its stream, the letter it names (-1: none), and its ``Ask``'s clock.
    """

    ids: Ints
    positions: Ints
    cells: Ints
    times: Ints
    marks: Ints
    about: Ints
    limit: Ints
    fork: Ints
    where: Ints
    targets: Ints
    question: Ints
    kinds: Ints
    ages: npt.NDArray[np.float64]
    sizes: Ints
    letters: Ints
    clocks: Ints


def collate(packed: list[Packed], multiple: int = 32) -> Batch:
    """Put ``packed`` into one batch; lengths are padded to a multiple that attention kernels like."""

    def up(length: int) -> int:
        return -(-length // multiple) * multiple

    rows = len(packed)
    stream = up(max(len(p.times) for p in packed))
    forks = up(max(len(p.limit) for p in packed))
    total = stream + forks
    ids, cells = np.zeros((rows, total), np.int64), np.full((rows, total), -1)
    positions = np.zeros((3, rows, total), np.int64)
    times, marks = np.zeros((rows, stream), np.int64), np.full((rows, stream, MARKS), -1)
    about = np.full((rows, stream, 2), -1)
    limit, fork = np.ones((rows, forks), np.int64), np.full((rows, forks), -1)
    where, targets, question = [], [], []
    asked = 0
    for row, one in enumerate(packed):
        s, f = len(one.times), len(one.limit)
        ids[row, :s], ids[row, stream : stream + f] = one.ids[:s], one.ids[s:]
        cells[row, :s] = one.cells[:s]
        positions[:, row, :s] = one.positions[:, :s]
        positions[:, row, stream : stream + f] = one.positions[:, s:]
        times[row, :s], marks[row, :s], about[row, :s] = one.times, one.marks, one.about
        limit[row, :f], fork[row, :f] = one.limit, one.fork
        index = np.flatnonzero(one.labels >= 0)
        where.append(row * total + stream + index)
        targets.append(one.labels[index])
        question.append(asked + one.fork[index])
        asked += len(one.asks)
    asks = [ask for one in packed for ask in one.asks]
    sizes = [len(one.video_starts) for one in packed for _ in one.asks]
    return Batch(
        ids=ids,
        positions=positions,
        cells=cells,
        times=times,
        marks=marks,
        about=about,
        limit=limit,
        fork=fork,
        where=np.concatenate(where),
        targets=np.concatenate(targets),
        question=np.concatenate(question),
        kinds=np.array([ask.kind for ask in asks]),
        ages=np.array([ask.age for ask in asks]),
        sizes=np.array(sizes),
        letters=np.array([ask.letter for ask in asks]),
        clocks=np.array([ask.clock for ask in asks]),
    )


def _join(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _text_positions(start: int, length: int) -> Ints:
    return np.broadcast_to(np.arange(start, start + length), (3, length))


def _span(grids: int, spacing: float) -> int:
    """Return the positions that ``grids`` frame pairs take up: the text after them begins that much later."""
    return max(int((grids - 1) * spacing), model.ROWS - 1, model.COLUMNS - 1) + 1
