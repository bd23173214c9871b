"""Train the tiny model: ``python -m kvvideo.tiny.train --out DIR --minutes 9 --device cuda``.

First the vision tower learns to tell letters and colours, with two throw-away classifiers on top. Then
it is frozen, a bank of drawn slots becomes a bank of embeddings, and the language model learns to
answer on streams that grow as it gets better, from one chunk to ten minutes. At last it is evaluated
on slots it never saw, with nothing evicted. ``DIR`` gets ``model.safetensors`` (bfloat16), ``eval.json``,
``state.json`` and ``log.txt``; ``kvvideo.tiny.model`` writes the files that belong beside the weights.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from kvvideo.tiny import compute, model, packing, world
from kvvideo.tiny.packing import Batch, Encoder
from kvvideo.tiny.streams import EMPTY, GRIDS, KINDS, Labels, Plan, Source

LEVELS = (1, 2, 4, 8, 16, 32, 64, 110, 160)
"""The longest stream, in chunks, of each level of the language model's curriculum."""

PASS = (0.80, 0.85, 0.88, 0.90, 0.92, 0.93, 0.94, 0.95)
"""Part of the questions that must be answered right to leave each level."""

EVAL_CHUNKS = (16, 32, 60, 120, 150)
AGES = (0, 16, 64, 256, 600)

TOKENIZER = Path(__file__).parent / "weights" / "tokenizer.json"

CLIP_SLOTS = 24
"""Slots of a clip drawn for the bank."""


@dataclass(frozen=True)
class Scale:
    """How much is done at once, by device."""

    slots: int
    held_out: int
    first: int
    pairs: int
    tokens: int
    long_tokens: int
    versions: int
    workers: int
    report: float


SCALES = {
    "cuda": Scale(16128, 2400, 1920, 768, 32768, 49152, 3, 10, 5.0),
    "cpu": Scale(960, 240, 240, 48, 2048, 6144, 1, 1, 10.0),
}


class Log:
    """Prints and keeps lines, with the seconds since the start."""

    def __init__(self, path: Path) -> None:
        self.start = time.time()
        self._file = path.open("a")

    def __call__(self, text: str) -> None:
        line = f"{self.elapsed():6.1f}s {text}"
        print(line, flush=True)
        self._file.write(line + "\n")
        self._file.flush()

    def elapsed(self) -> float:
        return time.time() - self.start


def draw_clip(seed: int) -> tuple[npt.NDArray[np.uint8], list[int], list[int]]:
    """A clip's slots as the model gets them: ``[slots, 2 * GRIDS, 84, 140, 3]``, letters and colours.

    Half of the slots are sampled off the beat, resized in different ways, and some go through JPEG,
    which does to colours and edges what video codecs do.
    """
    rng = np.random.default_rng([seed, 7])
    clip = world.Clip(seed, CLIP_SLOTS, density=0.8)
    size = (model.FRAME_WIDTH, model.FRAME_HEIGHT)
    filters = (
        Image.Resampling.BICUBIC,
        Image.Resampling.BILINEAR,
        Image.Resampling.BOX,
        Image.Resampling.LANCZOS,
    )
    frames = np.empty((CLIP_SLOTS, 2 * GRIDS, size[1], size[0], 3), np.uint8)
    for i, slot in enumerate(clip.slots):
        beat = rng.uniform(0, 0.45) if rng.random() < 0.5 else 0.0
        how = filters[int(rng.integers(len(filters)))]
        quality = int(rng.integers(40, 96)) if rng.random() < 0.5 else None
        for j in range(2 * GRIDS):
            picture = Image.fromarray(clip.frame(slot.start + 0.5 * j + beat))
            if quality is not None:
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=quality)
                picture = Image.open(file)
            frames[i, j] = np.asarray(picture.resize(size, how))
    names = list(world.COLOURS)
    letters = [EMPTY if s.letter is None else world.LETTERS.index(s.letter) for s in clip.slots]
    colours = [len(names) if s.colour is None else names.index(s.colour) for s in clip.slots]
    return frames, letters, colours


class Bank:
    """Drawn slots on the device; they arrive while training already runs on the first of them."""

    def __init__(self, pool: multiprocessing.pool.Pool, slots: int, seed: int, device: torch.device) -> None:
        self.frames = torch.zeros(
            (slots, GRIDS, 2, model.FRAME_HEIGHT, model.FRAME_WIDTH, 3), dtype=torch.uint8, device=device
        )
        self.letters = np.full(slots, EMPTY, np.int64)
        self.colours = np.full(slots, len(world.COLOURS), np.int64)
        self.letters_here = torch.full((slots,), EMPTY, device=device)
        self.colours_here = torch.full((slots,), len(world.COLOURS), device=device)
        self.filled = 0
        self._device = device
        self._error: BaseException | None = None
        self._results = pool.imap(draw_clip, range(seed, seed + slots // CLIP_SLOTS))
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        try:
            for frames, letters, colours in self._results:
                span = slice(self.filled, self.filled + len(letters))
                self.frames[span] = torch.from_numpy(frames).to(self._device).view_as(self.frames[span])
                self.letters[span], self.colours[span] = letters, colours
                self.letters_here[span] = torch.tensor(letters, device=self._device)
                self.colours_here[span] = torch.tensor(colours, device=self._device)
                self.filled += len(letters)
        except BaseException as error:
            self._error = error

    def wait(self, slots: int | None = None) -> None:
        """Wait until the first ``slots`` slots are there, or all."""
        wanted = len(self.letters) if slots is None else slots
        while self.filled < wanted:
            if self._error is not None:
                raise RuntimeError("drawing the bank failed") from self._error
            time.sleep(0.05)

    def labels(self) -> Labels:
        return Labels(self.letters, self.colours)


def augment(frames: torch.Tensor) -> torch.Tensor:
    """Pairs ``uint8 [n, 2, 84, 140, 3]`` with other light, colour casts and noise, as floats of 0..255."""
    x = frames.float()
    n, device = len(x), x.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((n, *shape), device=device)

    gain = draw(0.88, 1.1, 1, 1, 1, 1) * draw(0.95, 1.05, 1, 1, 1, 3)
    x = x * gain + draw(-10, 10, 1, 1, 1, 1)
    x = x + torch.randn_like(x) * draw(-8, 12, 1, 1, 1, 1).clamp(min=0)
    return x.clamp_(0, 255)


def optimizer(parameters: list[tuple[str, Any]], rate: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW that decays matrices, and neither norms nor embeddings."""
    matrices = [p for name, p in parameters if p.ndim >= 2 and "embed_tokens" not in name]
    others = [p for name, p in parameters if p.ndim < 2 or "embed_tokens" in name]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=device.type == "cuda")


def rate_at(step: int, done: float, warmup: int, hold: float) -> float:
    """Part of the peak learning rate: a warmup, then level until ``hold`` of the time, then a cosine."""
    warm = min(1.0, (step + 1) / warmup)
    if done < hold:
        return warm
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - hold) / (1 - hold)))))


def mixed(device: torch.device) -> Any:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def train_vision(whole: Any, vision: compute.Vision, bank: Bank, *, scale: Scale, until: float, log: Log) -> None:
    """Teach the vision tower letters and colours until ``until`` seconds, or until it makes few mistakes."""
    device = bank.frames.device
    hidden = whole.config.vision_config.out_hidden_size
    heads = torch.nn.ModuleList(
        [torch.nn.LayerNorm(hidden), torch.nn.Linear(hidden, EMPTY + 1), torch.nn.Linear(hidden, 9)]
    ).to(device)
    named = [*whole.model.visual.named_parameters(), *heads.named_parameters()]
    adam = optimizer(named, 1e-3, device)
    begin, shown, step = log.elapsed(), log.elapsed(), 0
    tally = torch.zeros(4, device=device)
    bank.wait(scale.first)
    good = 0
    while (now := log.elapsed()) < until and good < 3:
        slots = torch.randint(bank.filled, (scale.pairs,), device=device)
        grids = torch.randint(GRIDS, (scale.pairs,), device=device)
        frames = augment(bank.frames[slots, grids])
        still = torch.rand(len(frames), device=device) < 0.1
        frames[:, 1] = torch.where(still[:, None, None, None], frames[:, 0], frames[:, 1])
        letters, colours = bank.letters_here[slots], bank.colours_here[slots]
        for group in adam.param_groups:
            group["lr"] = 1e-3 * rate_at(step, (now - begin) / (until - begin), 200, 0.5)
        with mixed(device):
            pooled = heads[0](vision(frames).mean(dim=1))
            letter_logits, colour_logits = heads[1](pooled).float(), heads[2](pooled).float()
        loss = F.cross_entropy(letter_logits, letters) + 0.5 * F.cross_entropy(colour_logits, colours)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        adam.step()
        step += 1
        with torch.no_grad():
            right = (letter_logits.argmax(1) == letters).float().mean()
            hue = (colour_logits.argmax(1) == colours).float().mean()
            tally += torch.stack([loss.detach(), right, hue, torch.ones((), device=device)])
        if log.elapsed() - shown > scale.report:
            loss_, right_, hue_, count = tally.tolist()
            log(
                f"vision step {step} slots {bank.filled} loss {loss_ / count:.3f} "
                f"letter {right_ / count:.4f} colour {hue_ / count:.4f} "
                f"({count / (log.elapsed() - shown):.1f}/s)"
            )
            good = good + 1 if min(right_, hue_) / count > 0.9985 and bank.filled == len(bank.letters) else 0
            tally.zero_()
            shown = log.elapsed()
    # Text embeddings are small; the pictures' should not drown them, nor what attention adds to them.
    with torch.no_grad(), mixed(device):
        size = vision(bank.frames[: min(256, bank.filled), 0]).pow(2).mean().sqrt()
        last = whole.model.visual.merger.mlp[2]
        last.weight.mul_(0.25 / size)
        last.bias.mul_(0.25 / size)


@torch.no_grad()  # type: ignore[untyped-decorator]
def embed(vision: compute.Vision, bank: Bank, versions: int, dtype: torch.dtype) -> torch.Tensor:
    """The bank's video tokens ``[versions x cells, hidden]``: once as they are, then augmented."""
    bank.wait()
    frames = bank.frames.flatten(0, 1)
    parts = []
    with mixed(frames.device):
        for version in range(versions):
            for some in frames.split(1024):
                parts.append(vision(augment(some) if version else some.float()).flatten(0, 1).to(dtype))
    return torch.cat(parts)


def draw_batch(source: Source, rng: np.random.Generator, level: int, scale: Scale) -> Batch:
    """A batch of streams of about one length, mostly near the longest of ``level``."""
    longest = LEVELS[level]
    low = max(1.0, longest / 3) if rng.random() < 0.75 else 1.0
    chunks = round(math.exp(rng.uniform(math.log(low), math.log(longest))))
    asks = min(192, max(4, 2 * chunks))
    budget = scale.tokens if chunks < 32 else scale.long_tokens
    rows = max(1, round(budget / (chunks * 70 + 14 + asks * 21)))
    # All of a batch's streams lose tokens, or none: a stream that keeps all has a cheaper mask.
    plan = Plan(chunks, asks, varied=level >= 3, lossy=level >= 3 and rng.random() < 0.25)
    return packing.collate([source.draw(rng, plan) for _ in range(rows)])


def _produce(seed: int, level: Any, scale: Scale, box: Any, queue: Any) -> None:
    try:
        rng = np.random.default_rng(seed)
        source = Source(box.get(), encoder())
        while True:
            queue.put(draw_batch(source, rng, level.value, scale))
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception:
        queue.put(traceback.format_exc())


class Producer:
    """Worker processes that draw batches ahead of the training; the level is shared with them.

    They are forked at once, while there is neither a thread nor an accelerator to inherit, and wait.
    """

    def __init__(self, seed: int, scale: Scale) -> None:
        context = multiprocessing.get_context("fork")
        self.level = context.Value("i", 0)
        self._queue = context.Queue(maxsize=2 * scale.workers)
        self._box = context.Queue()
        self._workers = [
            context.Process(target=_produce, args=(seed + i, self.level, scale, self._box, self._queue), daemon=True)
            for i in range(scale.workers)
        ]
        for worker in self._workers:
            worker.start()

    def begin(self, labels: Labels, level: int) -> None:
        """Let the workers draw streams from a bank with ``labels``."""
        self.level.value = level
        for _ in self._workers:
            self._box.put(labels)

    def next(self) -> Batch:
        got = self._queue.get(timeout=120)
        if isinstance(got, str):
            raise RuntimeError(f"a worker failed:\n{got}")
        assert isinstance(got, Batch)
        return got

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()


def score(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Which questions are answered exactly right: ``bool [Q]``."""
    targets = compute.load(batch.targets, logits.device)
    question = compute.load(batch.question, logits.device)
    wrong = (logits.argmax(dim=1) != targets).float()
    return torch.zeros(len(batch.kinds), device=logits.device).index_add_(0, question, wrong) == 0


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
    """Teach the language model until ``until`` seconds; returns the level it reached."""
    device = tokens.device
    named = list(whole.model.language_model.named_parameters())
    adam = optimizer(named, peak, device)
    versions = len(tokens) // cells
    begin = shown = saved = log.elapsed()
    step = stepped = 0
    level_step = 0
    tally = torch.zeros((2, 2 * len(KINDS) + 1), device=device)
    chunks = 0
    while (now := log.elapsed()) < until:
        done = (now - begin) / (until - begin)
        batch = producer.next()
        level = producer.level.value
        for group in adam.param_groups:
            group["lr"] = peak * rate_at(step, done, 150, 0.35)
        shift = torch.randint(versions, (len(batch.ids),), device=device) * cells
        targets = compute.load(batch.targets, device)
        with mixed(device):
            logits = compute.answer_logits(whole, batch, tokens, shift)
        loss = F.cross_entropy(logits, targets)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        adam.step()
        step, level_step = step + 1, level_step + 1
        chunks += int(batch.sizes[0])
        with torch.no_grad():
            right = score(logits, batch).float()
            group_of = compute.load(batch.kinds + np.where(batch.clean, 0, len(KINDS)), device)
            tally[0].index_add_(0, group_of, right)
            tally[1].index_add_(0, group_of, torch.ones_like(right))
            tally[0, -1] += loss.detach()
        if log.elapsed() - shown < scale.report:
            continue
        numbers = tally.cpu().numpy()
        count = step - stepped
        each = numbers[0, :-1] / np.maximum(1, numbers[1, :-1])
        lossy = numbers[0, len(KINDS) : -1].sum() / max(1.0, numbers[1, len(KINDS) : -1].sum())
        clean = numbers[0, : len(KINDS)].sum() / max(1.0, numbers[1, : len(KINDS)].sum())
        log(
            f"language step {step} chunks<={LEVELS[level]} (mean {chunks / count:.0f}) "
            f"loss {numbers[0, -1] / count:.4f} right {clean:.4f} "
            + " ".join(f"{k.replace(' ', '-')} {a:.3f}" for k, a in zip(KINDS, each, strict=False))
            + f" evicted {lossy:.3f} lr {adam.param_groups[0]['lr']:.1e} "
            + f"({count / (log.elapsed() - shown):.1f}/s)"
        )
        # Behind the clock, go on anyway: half of the time belongs to the longer streams.
        due = int(min(1.0, done / 0.6) ** 1.5 * (len(LEVELS) - 1))
        passed = level < len(PASS) and clean > PASS[level] and level_step >= 20
        if level < len(LEVELS) - 1 and (passed or (due > level and clean > 0.6)):
            producer.level.value, level_step = level + 1, 0
        tally.zero_()
        shown, stepped, chunks = log.elapsed(), step, 0
        if shown - saved > 90:
            save(level)
            saved = log.elapsed()
    return int(producer.level.value)


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(
    whole: Any, vision: compute.Vision, bank: Bank, encode: Encoder, *, until: float, log: Log
) -> dict[str, Any]:
    """Exact answers on slots never trained on: by length, kind and age, as a tree of fractions."""
    device = bank.frames.device
    tokens = embed(vision, bank, 1, torch.float32)
    source = Source(bank.labels(), encode)
    rng = np.random.default_rng(12345)
    report: dict[str, Any] = {"held out slots": len(bank.letters)}
    cases = [(f"{n} chunks", Plan(n, 100, varied=False, start=0.0)) for n in EVAL_CHUNKS]
    cases += [
        ("150 chunks, start up to 2:00:00", Plan(150, 100, varied=False)),
        ("60 chunks, varied", Plan(60, 100)),
        ("60 chunks, evicted", Plan(60, 100, varied=False, lossy=True)),
    ]
    for name, plan in cases:
        rows: list[tuple[Batch, npt.NDArray[np.bool_]]] = []
        start = log.elapsed()
        while len(rows) < (16 if device.type == "cuda" else 3) and (log.elapsed() < until or not rows):
            batch = packing.collate([source.draw(rng, plan)])
            with mixed(device):
                right = score(compute.answer_logits(whole, batch, tokens), batch)
            rows.append((batch, right.cpu().numpy()))
        kinds = np.concatenate([b.kinds for b, _ in rows])
        ages = np.concatenate([b.ages for b, _ in rows])
        right_all = np.concatenate([r for _, r in rows])

        def share(mask: npt.NDArray[np.bool_], right_all: npt.NDArray[np.bool_] = right_all) -> list[float]:
            return [round(float(right_all[mask].mean()), 4) if mask.any() else -1.0, int(mask.sum())]

        buckets = {"not seen": ages < 0}
        for low, high in zip((-1, *AGES[:-1]), AGES, strict=True):
            buckets[f"age <= {high}"] = (ages > low) & (ages <= high) & (ages >= 0)
        report[name] = {
            "all": share(np.ones(len(kinds), bool)),
            "kind": {kind: share(kinds == i) for i, kind in enumerate(KINDS)},
            "age": {label: share(mask) for label, mask in buckets.items()},
            "kind and age": {
                kind: {label: share((kinds == i) & mask) for label, mask in buckets.items()}
                for i, kind in enumerate(KINDS[:3])
            },
        }
        by_kind = {kind: value[0] for kind, value in report[name]["kind"].items()}
        log(f"eval {name}: {report[name]['all'][0]:.4f} {by_kind} ({log.elapsed() - start:.1f}s)")
    return report


def save_weights(whole: Any, directory: Path) -> None:
    """Write ``model.safetensors`` in bfloat16, under the names released models use."""
    small = copy.deepcopy(whole).to("cpu", torch.bfloat16)
    with tempfile.TemporaryDirectory() as temporary:
        small.save_pretrained(temporary)
        shutil.copyfile(Path(temporary) / "model.safetensors", directory / "model.safetensors.new")
    os.replace(directory / "model.safetensors.new", directory / "model.safetensors")


def load_weights(whole: Any, directory: Path) -> None:
    """Read back what ``save_weights`` wrote, also for another vocabulary, if its tokenizer lies beside it."""
    with tempfile.TemporaryDirectory() as temporary:
        whole.config.save_pretrained(temporary)
        shutil.copy(directory / "model.safetensors", temporary)
        found = type(whole).from_pretrained(temporary, dtype=torch.float32)
    if (directory / "tokenizer.json").exists():
        carry_over(found.get_input_embeddings().weight.data, directory / "tokenizer.json")
    whole.load_state_dict(found.state_dict())


def carry_over(rows: torch.Tensor, tokenizer: Path) -> None:
    """Reorder embeddings ``[vocabulary, hidden]`` learnt with ``tokenizer`` for the shipped one, in place.

    A token the old vocabulary lacks begins as the mean of its characters.
    """
    from tokenizers import Tokenizer

    old = Tokenizer.from_file(str(tokenizer)).get_vocab()
    new = Tokenizer.from_file(str(TOKENIZER)).get_vocab()
    before = rows.clone()
    for token, row in new.items():
        sources = [old[token]] if token in old else [old[c] for c in token if c in old]
        if sources:
            rows[row] = before[sources].mean(dim=0)


def encoder() -> Encoder:
    """The shipped tokenizer's encoding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    return Encoder(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))


def prepare_imports() -> None:
    """Let transformers be imported where torchvision was built for another torch, as kvvideo does."""
    try:
        importlib.import_module("kvvideo._compat").prepare()
    except ModuleNotFoundError as error:
        if error.name != "kvvideo._compat":
            raise


def train(args: argparse.Namespace) -> None:
    from kvvideo.tiny.compute import Vision, use_packed_attention

    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "log.txt")
    device, scale = torch.device(args.device), SCALES[args.device]
    total = args.minutes * 60.0
    cores = min(16, len(os.sched_getaffinity(0)))
    # Workers come first: they must not inherit a running accelerator.
    pool = multiprocessing.get_context("fork").Pool(cores if args.device == "cuda" else 1)
    producer = Producer(1000 * (args.seed + 1), scale)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    # Its kernels for masked attention are picky; the two others serve every shape here.
    torch.backends.cuda.enable_cudnn_sdp(False)
    bank = Bank(pool, scale.slots, 1_000_000 * (args.seed + 1), device)

    prepare_imports()
    from transformers import Qwen2_5_VLForConditionalGeneration

    whole = Qwen2_5_VLForConditionalGeneration(model.config()).to(torch.float32)
    state = {"vision": False, "level": 0}
    if args.resume is not None:
        load_weights(whole, args.resume)
        state = json.loads((args.resume / "state.json").read_text())
    whole = whole.to(device)
    use_packed_attention(whole)
    vision = Vision(whole.model.visual, whole.config.vision_config, device)
    size = sum(p.numel() for p in whole.parameters()) / 1e6
    log(f"{size:.2f} M parameters on {device}, {cores} cores, torch {torch.__version__}, {args}")
    reserve = min(40.0, 0.08 * total) if args.device == "cuda" else min(240.0, 0.15 * total)

    def save(level: int) -> None:
        save_weights(whole, args.out)
        (args.out / "state.json").write_text(json.dumps({"vision": True, "level": level}) + "\n")
        log(f"saved at level {level}")

    if not state["vision"]:
        until = args.vision_share * total
        train_vision(whole, vision, bank, scale=scale, until=until, log=log)
    bank.wait()
    held_out = Bank(pool, scale.held_out, 900_000_000, device)
    save(state["level"])
    whole.model.visual.requires_grad_(False)
    tokens = embed(vision, bank, scale.versions, torch.bfloat16 if args.device == "cuda" else torch.float32)
    cells = scale.slots * GRIDS * model.TOKENS
    log(f"bank of {scale.slots} slots embedded; {tokens.numel() * tokens.element_size() / 2**20:.0f} MiB")
    producer.begin(bank.labels(), state["level"])
    level = train_language(
        whole,
        tokens,
        cells,
        producer,
        scale=scale,
        until=total - reserve,
        peak=args.rate,
        log=log,
        save=save,
    )
    producer.close()
    save(level)
    with torch.no_grad():
        # What is shipped is what is evaluated.
        for parameter in whole.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    report = evaluate(whole, vision, held_out, encoder(), until=total, log=log)
    (args.out / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    pool.terminate()
    log("done")


def main() -> None:
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
