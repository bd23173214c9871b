"""Train the tiny model: ``python -m kvvideo.tiny.training.train --out DIR --minutes 9 --device cuda``.

First the vision tower learns to turn a picture into the embeddings of the words for what it shows. Then it is frozen,
banks of drawn slots of both worlds become banks of embeddings, and the language model learns to answer on streams that
grow as it gets better, from one chunk to ten minutes. At last it is evaluated on slots it never saw. Nothing is ever
evicted. ``DIR`` gets ``model.safetensors`` (bfloat16) and the files that belong beside it, ``eval.json``,
``state.json`` and ``log.txt``. ``--resume DIR`` goes on from an earlier run.
"""

import argparse
import copy
import importlib
import io
import json
import math
import multiprocessing
import multiprocessing.pool
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from kvvideo.tiny import film, model, scenery, world
from kvvideo.tiny.training import compute, packing
from kvvideo.tiny.training.films import FilmSource, Scenes, pairs_of
from kvvideo.tiny.training.packing import Batch, Encoder
from kvvideo.tiny.training.streams import EMPTY, GRIDS, KINDS, Labels, Plan, Source

LEVELS = (1, 8, 16, 32, 64, 110, 160)
"""The longest stream, in chunks, of each level of the language model's curriculum.

The second is not 2 or 4: there, saying what the last letter was is right so often that the model learned
no other way (it stayed at 0.80 for as long as it was kept there).
"""

PASS = (0.75, 0.78, 0.82, 0.85, 0.87, 0.89)
"""Part of the questions that must be answered right to leave each level: our choice."""

HINT_LAYERS = 3
"""First layers of the language model, after which tokens should carry what the hints ask for: our choice."""

HINT_SHARE = 0.2
"""Weight of the hints in the loss: our choice."""

FOUND = 0.8
"""Part of the letters' colours that shows that the model looks letters up, and does not guess: our choice."""

WORST = 0.85
"""Part of right answers that every kind of question must reach before its time, to leave a level: our choice.

A first run passed on without it while it guessed places and lines, and never learned them on long streams.
"""

AGAIN = 2
"""Level that a resumed run begins at, at most: what is still guessed is learned on short streams."""

LETTERS_SHARE = 0.15
"""Part of the streams that is of the letters' world: our choice."""

EVAL_CHUNKS = (16, 32, 60, 120, 150)
AGES = (0, 16, 64, 256, 600)

CLIP_SLOTS = 24
"""Slots of a clip drawn for the bank."""


@dataclass(frozen=True)
class Scale:
    """Sizes of a device: slots and streams at once, workers, and ``report``, the seconds between lines of the log."""

    letters: int
    films: int
    held_out: int
    first: int
    pairs: int
    tokens: int
    long_tokens: int
    versions: int
    workers: int
    report: float


SCALES = {
    "cuda": Scale(6144, 30720, 7680, 1920, 1024, 32768, 49152, 3, 10, 5.0),
    "cpu": Scale(240, 960, 240, 240, 48, 2048, 6144, 1, 1, 10.0),
}


class Log:
    """Lines that are printed and kept in a file, with the seconds since the start."""

    def __init__(self, path: Path) -> None:
        self.start = time.time()
        self._file = path.open("a")

    def __call__(self, text: str) -> None:
        """Print and keep ``text``."""
        line = f"{self.elapsed():6.1f}s {text}"
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.time() - self.start


@dataclass
class Drawn:
    """Slots as the model gets them, and what they show.

    Attributes:
        frames: ``uint8 [slots, 2 * GRIDS, 84, 140, 3]``.
        letters, colours: ``[slots, GRIDS, sides]`` of each pair of frames; the letters' world has its one in the first.
        places: ``[slots]``; -1 in the letters' world.
        script: of a film.
    """

    frames: npt.NDArray[np.uint8]
    letters: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    script: film.Script | None = None


def _empty() -> Drawn:
    """Return a clip of the bank before anything is drawn."""
    size = (CLIP_SLOTS, GRIDS, len(film.SIDES))
    frames = np.empty((CLIP_SLOTS, 2 * GRIDS, model.FRAME_HEIGHT, model.FRAME_WIDTH, 3), np.uint8)
    return Drawn(frames, np.full(size, EMPTY), np.full(size, len(world.COLOURS)), np.full(CLIP_SLOTS, -1))


def _shoot(picture: Callable[[float], npt.NDArray[np.uint8]], frames: npt.NDArray[np.uint8], seed: int) -> None:
    """Draw a clip's frames.

    Half of the slots are sampled off the beat, resized in different ways, and some go through JPEG, which does to
    colours and edges what video codecs do.
    """
    rng = np.random.default_rng([seed, 7])
    filters = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.LANCZOS)
    for i in range(len(frames)):
        beat = rng.uniform(0, 0.45) if rng.random() < 0.5 else 0.0
        how = filters[int(rng.integers(len(filters)))]
        quality = int(rng.integers(40, 96)) if rng.random() < 0.5 else None
        for j in range(2 * GRIDS):
            shot = Image.fromarray(picture(i * world.SLOT + 0.5 * j + beat))
            if quality is not None:
                file = io.BytesIO()
                shot.save(file, "JPEG", quality=quality)
                shot = Image.open(file)
            frames[i, j] = np.asarray(shot.resize((model.FRAME_WIDTH, model.FRAME_HEIGHT), how))


def draw_clip(seed: int) -> Drawn:
    """Draw a clip of the letters' world."""
    clip, drawn = world.Clip(seed, CLIP_SLOTS, density=0.8), _empty()
    _shoot(clip.frame, drawn.frames, seed)
    names = list(world.COLOURS)
    for i, slot in enumerate(clip.slots):
        if slot.letter is not None and slot.colour is not None:
            drawn.letters[i, :, 0] = world.LETTERS.index(slot.letter)
            drawn.colours[i, :, 0] = names.index(slot.colour)
    return drawn


def draw_film(seed: int, unseen: bool = False) -> Drawn:
    """Draw a scene of the film world."""
    rng = np.random.default_rng([seed, 3])
    script = film.draw_scene(rng, film.PLACES[rng.integers(len(film.PLACES))], CLIP_SLOTS)
    drawn = _empty()
    _shoot(scenery.Film(seed, CLIP_SLOTS, unseen, script).frame, drawn.frames, seed)
    names = list(world.COLOURS)
    for visit in script.visits:
        for slot, pairs in pairs_of(visit):
            drawn.letters[slot, pairs, visit.side] = world.LETTERS.index(visit.letter)
            drawn.colours[slot, pairs, visit.side] = names.index(visit.colour)
    drawn.places[:] = film.PLACES.index(script.places[0])
    drawn.script = script
    return drawn


def draw_unseen(seed: int) -> Drawn:
    """Draw a scene of the film world in the style that is never trained on."""
    return draw_film(seed, unseen=True)


class Bank:
    """Drawn slots on the device; they arrive while training already runs on the first of them."""

    def __init__(
        self,
        pool: multiprocessing.pool.Pool,
        draw: Callable[[int], Drawn],
        slots: int,
        seed: int,
        device: torch.device,
    ) -> None:
        size = (slots, GRIDS, 2, model.FRAME_HEIGHT, model.FRAME_WIDTH, 3)
        # Nobody looks beyond what is filled.
        self.frames = torch.zeros(size, dtype=torch.uint8, device=device)
        self.letters, self.colours = (
            torch.zeros((slots, GRIDS, len(film.SIDES)), dtype=torch.int64, device=device) for _ in range(2)
        )
        self.places = torch.zeros(slots, dtype=torch.int64, device=device)
        self.scripts: list[film.Script] = []
        self.filled = 0
        self._device = device
        self._error: BaseException | None = None
        self._results = pool.imap(draw, range(seed, seed + slots // CLIP_SLOTS))
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        try:
            for drawn in self._results:
                span = slice(self.filled, self.filled + CLIP_SLOTS)
                self.frames[span] = torch.from_numpy(drawn.frames).to(self._device).view_as(self.frames[span])
                for own, here in (
                    (drawn.letters, self.letters),
                    (drawn.colours, self.colours),
                    (drawn.places, self.places),
                ):
                    here[span] = torch.from_numpy(own).to(self._device)
                if drawn.script is not None:
                    self.scripts.append(drawn.script)
                self.filled += CLIP_SLOTS
        except BaseException as error:
            self._error = error

    def wait(self, slots: int | None = None) -> None:
        """Wait until the first ``slots`` slots are there, or all.

        Raises:
            RuntimeError: if drawing them failed.
        """
        wanted = len(self.frames) if slots is None else slots
        while self.filled < wanted:
            if self._error is not None:
                raise RuntimeError("drawing the bank failed") from self._error
            time.sleep(0.05)

    def labels(self) -> Labels:
        """Return the labels of the slots of the letters' world."""
        self.wait()
        return Labels(self.letters[:, 0, 0].cpu().numpy(), self.colours[:, 0, 0].cpu().numpy())


def augment(frames: torch.Tensor) -> torch.Tensor:
    """Return pairs ``uint8 [n, 2, 84, 140, 3]`` with other light, colour casts and noise, as floats of 0..255."""
    x = frames.float()
    n, device = len(x), x.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((n, *shape), device=device)

    gain = draw(0.88, 1.1, 1, 1, 1, 1) * draw(0.95, 1.05, 1, 1, 1, 3)
    x = x * gain + draw(-10, 10, 1, 1, 1, 1)
    x = x + torch.randn_like(x) * draw(-8, 12, 1, 1, 1, 1).clamp(min=0)
    return x.clamp_(0, 255)


def optimizer(parameters: list[tuple[str, Any]], rate: float, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only, and lets embeddings, which the pictures were taught, move slowly."""
    words = [p for name, p in parameters if "embed_tokens" in name]
    matrices = [p for name, p in parameters if p.ndim >= 2 and "embed_tokens" not in name]
    others = [p for name, p in parameters if p.ndim < 2 and "embed_tokens" not in name]
    groups = [
        {"params": matrices, "weight_decay": 0.02, "share": 1.0},
        {"params": others, "weight_decay": 0.0, "share": 1.0},
        {"params": words, "weight_decay": 0.0, "share": 0.3},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=device.type == "cuda")


def set_rate(adam: torch.optim.AdamW, rate: float) -> None:
    """Set the learning rate of each group to its share of ``rate``."""
    for group in adam.param_groups:
        group["lr"] = rate * group["share"]


def rate_at(step: int, done: float, warmup: int, hold: float) -> float:
    """Return the part of the peak learning rate: a warmup, then level until ``hold`` of the time, then a cosine."""
    warm = min(1.0, (step + 1) / warmup)
    if done < hold:
        return warm
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - hold) / (1 - hold)))))


def mixed(device: torch.device) -> Any:
    """Return a context that computes in bfloat16 on a GPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


class Reading(torch.nn.Module):
    """Throw-away heads of the vision tower, whose classes are the embeddings of words.

    What a picture's tokens share with the word ``K`` is then what the language model looks for, as it would look for
    the same word. A query for each side of a film's pictures finds the tokens there, which must say where they are.
    """

    def __init__(self, embeddings: torch.Tensor, encode: Encoder) -> None:
        super().__init__()
        self.letters, self.colours, self.places, self.sides = words(embeddings, encode)
        self.sharpness = torch.nn.Parameter(torch.full((4,), 0.5, device=embeddings.device))
        self.queries = torch.nn.Parameter(F.normalize(self.sides.clone(), dim=1) * 4)

    def forward(
        self, seen: torch.Tensor, letters: torch.Tensor, colours: torch.Tensor, places: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of tokens ``[n, TOKENS, hidden]``, and the parts of right letters, colours and places.

        The pictures from ``first`` on are of films.
        """
        seen = seen.float()
        mean = F.rms_norm(seen.mean(dim=1), seen.shape[-1:])
        weights = (F.rms_norm(seen[first:], seen.shape[-1:]) @ self.queries.T / 4).softmax(dim=1)
        sides = F.rms_norm(torch.einsum("nts,nth->nsh", weights, seen[first:]), seen.shape[-1:])
        # Of a picture of the letters' world all tokens count, and one label.
        pooled = torch.cat([mean[:first], sides.flatten(0, 1)])
        letter = torch.cat([letters[:first, 0], letters[first:].flatten()])
        colour = torch.cat([colours[:first, 0], colours[first:].flatten()])
        letter_logits = self.sharpness[0] * pooled @ self.letters.T
        colour_logits = self.sharpness[1] * pooled @ self.colours.T
        place_logits = self.sharpness[2] * mean[first:] @ self.places.T
        side_logits = self.sharpness[3] * sides @ self.sides.T
        side = torch.arange(len(self.sides), device=seen.device).expand(side_logits.shape[:2])
        loss = F.cross_entropy(letter_logits, letter) + 0.5 * F.cross_entropy(colour_logits, colour)
        loss = loss + 0.5 * F.cross_entropy(place_logits, places[first:])
        loss = loss + 0.3 * F.cross_entropy(side_logits.flatten(0, 1), side.flatten())
        right = [(letter_logits, letter), (colour_logits, colour), (place_logits, places[first:])]
        return loss, torch.stack([(x.argmax(1) == y).float().mean() for x, y in right])


def train_vision(
    whole: Any, vision: compute.Vision, banks: list[Bank], encode: Encoder, *, scale: Scale, until: float, log: Log
) -> None:
    """Teach the vision tower what pictures show until ``until`` seconds, or until it makes few mistakes.

    ``banks`` are of the letters' world and of films; a quarter of the pictures is of the first.
    """
    device = banks[0].frames.device
    reading = Reading(whole.get_input_embeddings().weight.detach(), encode).to(device)
    named = [*whole.model.visual.named_parameters(), *reading.named_parameters()]
    adam = optimizer(named, 1e-3, device)
    begin, shown, step = log.elapsed(), log.elapsed(), 0
    tally = torch.zeros(5, device=device)
    for bank in banks:
        bank.wait(min(scale.first, len(bank.frames)))
    good = 0
    while (now := log.elapsed()) < until and good < 3:
        parts = []
        for bank, count in zip(banks, (scale.pairs // 4, scale.pairs - scale.pairs // 4), strict=True):
            slots = torch.randint(bank.filled, (count,), device=device)
            grids = torch.randint(GRIDS, (count,), device=device)
            own = bank.frames[slots, grids], bank.letters[slots, grids], bank.colours[slots, grids], bank.places[slots]
            parts.append(own)
        frames, letters, colours, places = (torch.cat(some) for some in zip(*parts, strict=True))
        frames = augment(frames)
        still = torch.rand(len(frames), device=device) < 0.1
        frames[:, 1] = torch.where(still[:, None, None, None], frames[:, 0], frames[:, 1])
        set_rate(adam, 1e-3 * rate_at(step, (now - begin) / (until - begin), 200, 0.5))
        with mixed(device):
            seen = vision(frames)
        loss, right = reading(seen, letters, colours, places, scale.pairs // 4)
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        adam.step()
        step += 1
        with torch.no_grad():
            tally += torch.cat([loss.detach()[None], right, torch.ones(1, device=device)])
        if log.elapsed() - shown > scale.report:
            *sums, count = tally.tolist()
            loss_, letter_, colour_, place_ = (x / count for x in sums)
            log(
                f"vision step {step} slots {[bank.filled for bank in banks]} loss {loss_:.3f} letter {letter_:.4f} "
                f"colour {colour_:.4f} place {place_:.4f} ({count / (log.elapsed() - shown):.1f}/s)"
            )
            done = all(bank.filled == len(bank.frames) for bank in banks)
            good = good + 1 if min(letter_, colour_, place_) > 0.9985 and done else 0
            tally.zero_()
            shown = log.elapsed()
    # Text embeddings are small; the pictures' should not drown them, nor what attention adds to them.
    with torch.no_grad(), mixed(device):
        size = vision(banks[1].frames[: min(256, banks[1].filled), 0]).pow(2).mean().sqrt()
        last = whole.model.visual.merger.mlp[2]
        last.weight.mul_(0.25 / size)
        last.bias.mul_(0.25 / size)


def words(embeddings: torch.Tensor, encode: Encoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the targets of letters ``[27, hidden]``, colours ``[9, hidden]``, places and sides, unit vectors.

    None is the last letter and colour. A letter is one token in a question and another one in an answer: pictures are
    taught their sum.
    """

    def rows(texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([embeddings[int(encode(text)[0])] for text in texts])

    none = rows([world.NONE])
    letters = rows(world.LETTERS) + rows([f" {letter}" for letter in world.LETTERS])
    found = (torch.cat([letters, none]), torch.cat([rows([*world.COLOURS]), none]), rows(film.PLACES), rows(film.SIDES))
    a, b, c, d = (F.normalize(some, dim=1) for some in found)
    return a, b, c, d


@torch.no_grad()
def embed(vision: compute.Vision, banks: list[Bank], versions: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the video tokens of ``banks``, ``[versions x cells, hidden]``: once as they are, then augmented."""
    parts = []
    with mixed(banks[0].frames.device):
        for version in range(versions):
            for bank in banks:
                bank.wait()
                for some in torch.split(bank.frames.flatten(0, 1), 1024):
                    parts.append(vision(augment(some) if version else some.float()).flatten(0, 1).to(dtype))
    return torch.cat(parts)


@dataclass(frozen=True)
class Sources:
    """Labels of the letters' world, and scenes of films that lie behind them in the bank, to draw streams from."""

    labels: Labels
    scenes: Scenes

    @classmethod
    def of(cls, banks: list[Bank]) -> "Sources":
        """Return the sources of two banks, whose embeddings lie one after the other."""
        banks[1].wait()
        return cls(banks[0].labels(), Scenes(banks[1].scripts, len(banks[0].frames)))


def draw_batch(sources: tuple[Source, FilmSource], rng: np.random.Generator, level: int, scale: Scale) -> Batch:
    """Draw a batch of streams of about one length, mostly near the longest of ``level``."""
    longest = LEVELS[level]
    low = max(1.0, longest / 3) if rng.random() < 0.75 else 1.0
    chunks = round(math.exp(rng.uniform(math.log(low), math.log(longest))))
    asks = min(224, max(8, 4 * chunks))
    budget = scale.tokens if chunks < 32 else scale.long_tokens
    rows = max(1, round(budget / (chunks * 70 + 14 + asks * 21)))
    plan = Plan(chunks, asks, varied=level >= 2)
    source = sources[int(rng.random() >= LETTERS_SHARE)]
    return packing.collate([source.draw(rng, plan) for _ in range(rows)])


def _produce(seed: int, level: Any, scale: Scale, directory: Path, box: Any, queue: Any) -> None:
    try:
        rng = np.random.default_rng(seed)
        drawn: Sources = box.get()
        encode = encoder(directory)
        sources = Source(drawn.labels, encode), FilmSource(drawn.scenes, encode)
        while True:
            queue.put(draw_batch(sources, rng, level.value, scale))
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception:
        queue.put(traceback.format_exc())


class Producer:
    """Worker processes that draw batches ahead of the training; the level is shared with them.

    They are forked at once, while there is neither a thread nor an accelerator to inherit, and wait.
    """

    def __init__(self, seed: int, scale: Scale, directory: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.level = context.Value("i", 0)
        self._queue = context.Queue(maxsize=2 * scale.workers)
        self._box = context.Queue()
        self._workers = [
            context.Process(
                target=_produce,
                args=(seed + i, self.level, scale, directory, self._box, self._queue),
                daemon=True,
            )
            for i in range(scale.workers)
        ]
        for worker in self._workers:
            worker.start()

    def begin(self, sources: Sources, level: int) -> None:
        """Let the workers draw streams from ``sources``."""
        self.level.value = level
        for _ in self._workers:
            self._box.put(sources)

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            RuntimeError: if a worker failed.
        """
        got = self._queue.get(timeout=120)
        if isinstance(got, str):
            raise RuntimeError(f"a worker failed:\n{got}")
        assert isinstance(got, Batch)
        return got

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.terminate()


def score(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return True for each question that is answered exactly right, ``bool [Q]``."""
    targets = compute.load(batch.targets, logits.device)
    question = compute.load(batch.question, logits.device)
    wrong = (logits.argmax(dim=1) != targets).float()
    return torch.zeros(len(batch.kinds), device=logits.device).index_add_(0, question, wrong) == 0


class Hints(torch.nn.Module):
    """Throw-away heads that ask the middle of the language model for the two halves of looking something up.

    Video tokens should know the time that is written before them, so that it is found with what they
    show. Each token of an answer should know the letter that was asked about: the first of them learns it
    alone, but the second half of a time was guessed (0.4 right) for whole runs without this. Of a film, video tokens
    should also know how often the letter at their side has come, the letter that came before it and the place, the end
    of a line the letter it is about and the word (lost among larger states without this: a second run guessed it), and
    the answer's tokens the time that was asked about.
    """

    SIZES = (10, 60, 60)
    LETTERS = len(world.LETTERS) + 1

    def __init__(self, language_model: Any, hidden: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(hidden)
        self.clock = torch.nn.Linear(hidden, sum(self.SIZES))
        self.letter = torch.nn.Linear(hidden, self.LETTERS)
        self.count = torch.nn.Linear(hidden, film.MOST + 1)
        self.before = torch.nn.Linear(hidden, self.LETTERS)
        self.place = torch.nn.Linear(hidden, len(film.PLACES))
        self.about = torch.nn.Linear(hidden, self.LETTERS)
        self.word = torch.nn.Linear(hidden, len(film.SAID))
        self.named = torch.nn.Linear(hidden, sum(self.SIZES))
        self._states: torch.Tensor | None = None
        self.hook = language_model.layers[HINT_LAYERS - 1].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._states = output[0] if isinstance(output, tuple) else output

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of the latest forward pass, which was of ``batch``: the sum of all hints."""
        assert self._states is not None
        states, self._states = self.norm(self._states), None
        device, width = states.device, batch.times.shape[1]
        video = compute.load(batch.cells[:, :width], device) >= 0
        clock = self._clocks(self.clock(states[:, :width][video]), compute.load(batch.times, device)[video])
        question = compute.load(batch.question, device)
        answering = states.flatten(0, 1)[compute.load(batch.where, device)]
        asked = compute.load(batch.letters, device)[question] % self.LETTERS
        loss = clock + F.cross_entropy(self.letter(answering).float(), asked)
        loss = loss + self._clocks(self.named(answering), compute.load(batch.clocks, device)[question])
        seen, marks = states[:, :width].flatten(0, 1), compute.load(batch.marks, device).flatten(0, 1)
        for mark, head in enumerate((self.count, self.before, self.place)):
            loss = loss + _mean(head(seen), marks[:, mark])
        about = compute.load(batch.about, device).flatten(0, 1)
        return loss + _mean(self.about(seen), about[:, 0]) + _mean(self.word(seen), about[:, 1])

    def _clocks(self, logits: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
        """Return the loss of hours, minutes and seconds; those below zero do not count."""
        parts = torch.split(logits, [*self.SIZES], dim=1)
        targets = ((seconds // 3600).clamp(max=9), seconds // 60 % 60, seconds % 60)
        losses = [_mean(x, torch.where(seconds < 0, -1, y)) for x, y in zip(parts, targets, strict=True)]
        return torch.stack(losses).sum()


def _mean(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the targets that are not -1; 0 if all are."""
    total = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


class Tally:
    """Losses and right answers since the last line of the log."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros((2, len(KINDS)), device=device)
        self._losses = torch.zeros(2, device=device)
        self._steps = self._chunks = 0

    @torch.no_grad()
    def add(self, batch: Batch, logits: torch.Tensor, loss: torch.Tensor, hint: torch.Tensor) -> None:
        """Count one step."""
        right = score(logits, batch).float()
        group = compute.load(batch.kinds, logits.device)
        self._counts[0].index_add_(0, group, right)
        self._counts[1].index_add_(0, group, torch.ones_like(right))
        self._losses += torch.stack([loss.detach(), hint.detach()])
        self._steps += 1
        self._chunks += int(batch.sizes[0])

    def take(self) -> tuple[float, float, float, str]:
        """Return the parts of right answers of all, of the worst kind and of the letters' colours, and a line.

        Begin anew.
        """
        right, asked = self._counts.cpu().numpy().copy()
        loss, hint = (self._losses / self._steps).tolist()
        each = right / np.maximum(1, asked)
        line = f"(mean {self._chunks / self._steps:.0f}) loss {loss:.4f} hints {hint:.4f} "
        line += f"right {right.sum() / max(1.0, asked.sum()):.4f} "
        line += " ".join(f"{k.replace(' ', '-')} {a:.3f}" for k, a in zip(KINDS, each, strict=True))
        self._counts.zero_()
        self._losses.zero_()
        self._steps = self._chunks = 0
        found = [each[KINDS.index(kind)] for kind in ("colour first", "colour last")]
        return float(right.sum() / max(1.0, asked.sum())), float(each[asked > 0].min()), float(min(found)), line


def train_language(
    whole: Any,
    tokens: torch.Tensor,
    cells: int,
    producer: Producer,
    *,
    scale: Scale,
    until: float,
    peak: float,
    log: Log,
    save: Callable[[int], None],
) -> int:
    """Teach the language model until ``until`` seconds; return the level it reached."""
    device = tokens.device
    text = whole.model.language_model
    hints = Hints(text, whole.config.text_config.hidden_size).to(device)
    adam = optimizer([*text.named_parameters(), *hints.named_parameters()], peak, device)
    begin = shown = saved = log.elapsed()
    step = level_step = 0
    tally = Tally(device)
    while (now := log.elapsed()) < until:
        done = (now - begin) / (until - begin)
        batch = producer.next()
        level = producer.level.value
        rate = peak * rate_at(step, done, 150, 0.35)
        set_rate(adam, rate)
        shift = torch.randint(len(tokens) // cells, (len(batch.ids),), device=device) * cells
        with mixed(device):
            logits = compute.answer_logits(whole, batch, tokens, shift)
            hint = hints.loss(batch)
        loss = F.cross_entropy(logits, compute.load(batch.targets, device))
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + HINT_SHARE * hint)
        torch.nn.utils.clip_grad_norm_([*text.parameters(), *hints.parameters()], 1.0)
        adam.step()
        step, level_step = step + 1, level_step + 1
        tally.add(batch, logits, loss, hint)
        if log.elapsed() - shown < scale.report:
            continue
        clean, worst, found, line = tally.take()
        log(f"language step {step} chunks<={LEVELS[level]} {line} lr {rate:.1e}")
        shown = log.elapsed()
        # Behind the clock, go on once letters are looked up: half of the time belongs to the longer streams.
        due = int(min(1.0, done / 0.6) ** 1.5 * (len(LEVELS) - 1))
        passed = level < len(PASS) and clean > PASS[level] and worst > WORST and level_step >= 20
        if level < len(LEVELS) - 1 and (passed or (due > level and found > FOUND)):
            producer.level.value, level_step = level + 1, 0
        if shown - saved > 90:
            save(level)
            saved = log.elapsed()
    hints.hook.remove()
    return int(producer.level.value)


@torch.no_grad()
def evaluate(
    whole: Any, vision: compute.Vision, banks: list[Bank], encode: Encoder, *, until: float, log: Log
) -> dict[str, Any]:
    """Return the part of exact answers on slots never trained on, by length, kind and age.

    ``banks`` are of the letters' world, of films, and of films in the style never trained on.
    """
    device = banks[0].frames.device
    tokens = embed(vision, banks, 1, torch.float32)
    sources = Sources.of(banks[:2])
    behind = len(banks[0].frames) + len(banks[1].frames)
    by_name: dict[str, Source | FilmSource] = {
        "letters": Source(sources.labels, encode),
        "film": FilmSource(sources.scenes, encode),
        "unseen": FilmSource(Scenes(banks[2].scripts, behind), encode),
    }
    rng = np.random.default_rng(12345)
    report: dict[str, Any] = {"held out slots": [len(bank.frames) for bank in banks]}
    cases = [("film", f"{n} chunks", Plan(n, 100, varied=False, start=0.0)) for n in EVAL_CHUNKS]
    cases += [
        ("film", "150 chunks, start up to 2:00:00", Plan(150, 100, varied=False)),
        ("film", "60 chunks, varied", Plan(60, 100)),
        ("unseen", "60 chunks", Plan(60, 100, varied=False, start=0.0)),
        ("letters", "16 chunks", Plan(16, 100, varied=False, start=0.0)),
        ("letters", "60 chunks", Plan(60, 100, varied=False, start=0.0)),
        ("letters", "150 chunks", Plan(150, 100, varied=False, start=0.0)),
    ]
    for world_, name, plan in cases:
        rows: list[tuple[Batch, npt.NDArray[np.bool_]]] = []
        start = log.elapsed()
        while len(rows) < (24 if device.type == "cuda" else 3) and (log.elapsed() < until or not rows):
            batch = packing.collate([by_name[world_].draw(rng, plan)])
            with mixed(device):
                right = score(compute.answer_logits(whole, batch, tokens), batch)
            rows.append((batch, right.cpu().numpy()))
        found = report[f"{world_}, {name}"] = _shares(rows)
        by_kind = {kind: value[0] for kind, value in found["kind"].items()}
        log(f"eval {world_}, {name}: {found['all'][0]:.4f} {by_kind} ({log.elapsed() - start:.1f}s)")
    return report


def _shares(rows: Sequence[tuple[Batch, npt.NDArray[np.bool_]]]) -> dict[str, Any]:
    """Return the parts of right answers, and the numbers asked: of all, by kind and by age."""
    kinds = np.concatenate([b.kinds for b, _ in rows])
    ages = np.concatenate([b.ages for b, _ in rows])
    right = np.concatenate([r for _, r in rows])

    def share(mask: npt.NDArray[np.bool_]) -> list[float]:
        return [round(float(right[mask].mean()), 4), int(mask.sum())]

    groups = {"not seen": ages < 0}
    for low, high in zip((-1, *AGES[:-1]), AGES, strict=True):
        groups[f"age <= {high}"] = (ages > low) & (ages <= high) & (ages >= 0)
    return {
        "all": share(np.ones(len(kinds), bool)),
        "kind": {kind: share(kinds == i) for i, kind in enumerate(KINDS) if (kinds == i).any()},
        "age": {label: share(mask) for label, mask in groups.items() if mask.any()},
    }


def save_weights(whole: Any, directory: Path) -> None:
    """Write ``model.safetensors`` in bfloat16, under the names released models use."""
    small = copy.deepcopy(whole).to("cpu", torch.bfloat16)
    with tempfile.TemporaryDirectory() as temporary:
        small.save_pretrained(temporary)
        shutil.copyfile(Path(temporary) / "model.safetensors", directory / "model.safetensors.new")
    os.replace(directory / "model.safetensors.new", directory / "model.safetensors")


def load_weights(whole: Any, directory: Path) -> None:
    """Read back what ``save_weights`` wrote."""
    with tempfile.TemporaryDirectory() as temporary:
        whole.config.save_pretrained(temporary)
        shutil.copy(directory / "model.safetensors", temporary)
        found = type(whole).from_pretrained(temporary, dtype=torch.float32)
    whole.load_state_dict(found.state_dict())


def encoder(directory: Path) -> Encoder:
    """Return the encoder of the tokenizer in ``directory``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return Encoder(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))


def prepare_imports() -> None:
    """Let transformers be imported where torchvision was built for another torch, as kvvideo does."""
    try:
        importlib.import_module("kvvideo.plugin.compat").prepare()
    except ModuleNotFoundError as error:
        if error.name not in ("kvvideo.plugin", "kvvideo.plugin.compat"):
            raise


def build(resume: Path | None) -> tuple[Any, dict[str, Any]]:
    """Return the model as drawn, or as an earlier run left it in ``resume``, and how far it got."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    whole = Qwen2_5_VLForConditionalGeneration(model.config()).to(torch.float32)
    if resume is not None:
        load_weights(whole, resume)
        state = json.loads((resume / "state.json").read_text())
        return whole, state | {"level": min(state["level"], AGAIN)}
    # As drawn (0.02) they would be lost in what the first attention layers add to them.
    whole.get_input_embeddings().weight.data.mul_(5)
    return whole, {"vision": False, "level": 0}


def train(args: argparse.Namespace) -> None:
    """Train both parts and evaluate, with the options of the command line."""
    prepare_imports()
    model.write_files(args.out)
    if args.resume is not None:
        # Words are numbered as they were; another release of the tokenizers might choose others.
        shutil.copyfile(args.resume / "tokenizer.json", args.out / "tokenizer.json")
    log = Log(args.out / "log.txt")
    device, scale = torch.device(args.device), SCALES[args.device]
    total = args.minutes * 60.0
    cores = min(16, len(os.sched_getaffinity(0)))
    # Workers come first: they must not inherit a running accelerator.
    pool = multiprocessing.get_context("fork").Pool(cores if args.device == "cuda" else 1)
    producer = Producer(1000 * (args.seed + 1), scale, args.out)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    # Its kernels for masked attention are picky; the two others serve every shape here.
    torch.backends.cuda.enable_cudnn_sdp(False)
    seed = 1_000_000 * (args.seed + 1)
    banks = [Bank(pool, draw_clip, scale.letters, seed, device), Bank(pool, draw_film, scale.films, seed, device)]

    encode = encoder(args.out)
    whole, state = build(args.resume)
    whole = whole.to(device)
    compute.use_packed_attention(whole)
    vision = compute.Vision(whole.model.visual, whole.config.vision_config, device)
    size = sum(p.numel() for p in whole.parameters()) / 1e6
    log(f"{size:.2f} M parameters on {device}, {cores} cores, torch {torch.__version__}, {args}")
    reserve = min(20.0, 0.08 * total) if args.device == "cuda" else min(240.0, 0.15 * total)

    def save(level: int) -> None:
        save_weights(whole, args.out)
        (args.out / "state.json").write_text(json.dumps({"vision": True, "level": level}) + "\n")
        log(f"saved at level {level}")

    if not state["vision"]:
        until = args.vision_share * total
        train_vision(whole, vision, banks, encode, scale=scale, until=until, log=log)
    for bank in banks:
        bank.wait()
    held_out = [Bank(pool, draw, scale.held_out, 900_000_000, device) for draw in (draw_clip, draw_film, draw_unseen)]
    save(state["level"])
    whole.model.visual.requires_grad_(False)
    tokens = embed(vision, banks, scale.versions, torch.bfloat16 if args.device == "cuda" else torch.float32)
    cells = (scale.letters + scale.films) * GRIDS * model.TOKENS
    log(f"banks embedded; {tokens.numel() * tokens.element_size() / 2**20:.0f} MiB")
    producer.begin(Sources.of(banks), state["level"])
    end = total - reserve
    level = train_language(whole, tokens, cells, producer, scale=scale, until=end, peak=args.rate, log=log, save=save)
    producer.close()
    save(level)
    with torch.no_grad():
        # What is shipped is what is evaluated.
        for parameter in whole.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    report = evaluate(whole, vision, held_out, encode, until=total, log=log)
    (args.out / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    pool.terminate()
    log("done")


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description="Train kvvideo's tiny model.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the weights, log and evaluation")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock, evaluation included")
    parser.add_argument("--device", choices=sorted(SCALES), default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the language model")
    parser.add_argument("--vision-share", type=float, default=0.3, help="part of the time for the vision tower")
    parser.add_argument("--resume", type=Path, help="directory of an earlier run to go on from")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    train(parser.parse_args())
    sys.stdout.flush()
    # Daemon threads and workers are of no more use, and some may hold a queue.
    os._exit(0)


if __name__ == "__main__":
    main()
