"""Alternatives to kvvideo for asking about a stream, each as simple and as fast as it comes.

All see the same chunks in the same words, with the same weights, in one process.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np

from kvvideo.compression import load, places
from kvvideo.compression.policy import LiveCache, Policy
from kvvideo.compression.rotary import Rotary
from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.plugin import surface
from kvvideo.plugin.platform import is_cpu
from kvvideo.plugin.register import check_installed
from kvvideo.prompt import OPENING, chunk_text, question_text
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.arguments import block_size, common_arguments
from kvvideo.session.environment import set_environment
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import computed_in, text_config
from kvvideo.session.pool import page_bytes
from kvvideo.types import Chunk


class Over(KvvideoError):
    """The stream has become too long for a rival."""


class Rival(ABC):
    """One way to follow a stream and be asked about it."""

    name: ClassVar[str]
    about: ClassVar[str]

    def __init__(self) -> None:
        self.seen = 0
        """Tokens of the stream so far."""

    @abstractmethod
    def ingest(self, chunk: Chunk) -> None:
        """See ``chunk``.

        Raises:
            Over: if the stream is too long now.
        """

    @abstractmethod
    def ask(self, question: str) -> float:
        """Return the seconds to the first token of an answer."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Bytes of keys and values held, and of what belongs to them."""

    def close(self) -> None:  # noqa: B027  (optional)
        """Give all memory back."""


class Kvvideo(Rival):
    """kvvideo itself."""

    name = "kvvideo"
    about = "vLLM with this package's plug-in: a session whose cache is bounded"

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.engine = Engine(config)
        self.session = VideoSession(self.engine)

    def ingest(self, chunk: Chunk) -> None:
        """See ``chunk``."""
        self.session.ingest(chunk)
        self.seen = self.session.stats().seen

    def ask(self, question: str) -> float:
        """Return the seconds to the first token of an answer."""
        return self.session.ask(question, max_tokens=1).first_token_seconds

    @property
    def live(self) -> int:
        """Tokens held."""
        return self.session.stats().live

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values held, and of their side state."""
        return self.session.stats().bytes

    def close(self) -> None:
        """Give all memory back."""
        self.session.close()
        self.engine.close()


def as_video(chunk: Chunk) -> tuple[Any, dict[str, Any]]:
    """Return the frames of ``chunk`` as vLLM's input processor takes them, marked as sampled already."""
    count = len(chunk.frames)
    metadata = {
        "fps": chunk.fps,
        "frames_indices": list(range(count)),
        "total_num_frames": count,
        "duration": count / chunk.fps,
        "video_backend": "kvvideo",
        "do_sample_frames": False,
    }
    return np.ascontiguousarray(chunk.frames), metadata


class Plain:
    """vLLM as it comes, prefix caching included, with room for a stream of ``tokens`` tokens that nothing compresses.

    Only what kvvideo's engine has too is set: block size, batch size, and a scheduler that does not run ahead.
    """

    def __init__(self, config: EngineConfig, tokens: int, chunks: int, copies: int) -> None:
        set_environment()
        check_installed()
        surface.check()
        from kvvideo.plugin.engine import LocalEngine

        text = text_config(model_path(config.model))
        self.limit = min(tokens, int(text.max_position_embeddings))
        arguments = common_arguments(config)
        size = arguments["block_size"]
        width = computed_in(model_path(config.model), config).itemsize
        self.token_bytes: int = page_bytes(text, size, width, 0) * int(text.num_hidden_layers) // size
        arguments |= {
            "max_model_len": self.limit,
            "limit_mm_per_prompt": {"video": chunks, "image": 0},
            "async_scheduling": False,
            "kv_cache_memory_bytes": copies * self.token_bytes * (self.limit + 2 * size),
            **config.options,
        }
        if not is_cpu():
            arguments.setdefault("gpu_memory_utilization", 0.01)
        self.engine = LocalEngine(arguments)
        self._count = 0

    def new_id(self) -> str:
        """Return a request id that was not used before."""
        self._count += 1
        return f"plain-{self._count}"

    def request(self, name: str, text: str, chunks: list[Chunk], salt: str, resumable: bool) -> Any:
        """Return ``text`` with the frames of ``chunks`` as one request, its one token greedy."""
        from kvvideo.plugin.sampling import reading

        prompt: dict[str, Any] = {"prompt": text, "cache_salt": salt}
        if chunks:
            prompt["multi_modal_data"] = {"video": [as_video(chunk) for chunk in chunks]}
        return self.engine.request(name, prompt, reading(), resumable)

    def run(self, request: Any) -> int:
        """Step until ``request`` has its token; return how many tokens it brought."""
        count = len(request.prompt_token_ids)
        self.engine.append(request)
        while self.engine.is_computing(request.request_id):
            self.engine.step()
        return count

    def close(self) -> None:
        """Give all memory back."""
        if not self.engine.closed:
            self.engine.abort([*self.engine.scheduler.requests])
            self.engine.close()


class Uncompressed(Rival):
    """A stream of which nothing is dropped, in vLLM as it comes."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.plain = plain

    def check(self, coming: int) -> None:
        """Check that the model takes ``coming`` more tokens.

        Raises:
            Over: if it does not.
        """
        if self.seen + coming >= self.plain.limit:
            raise Over(f"{self.plain.limit} tokens are all that the model takes")

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values held, and of their side state."""
        return self.seen * self.plain.token_bytes


class VllmSession(Uncompressed):
    """vLLM's own streaming session."""

    name = "vllm-session"
    about = "vLLM's own streaming session (a resumable request): nothing is ever dropped; a question joins the stream"

    def __init__(self, plain: Plain) -> None:
        super().__init__(plain)
        self._id: str | None = None

    def ingest(self, chunk: Chunk) -> None:
        """See ``chunk``."""
        self._append(chunk_text(chunk.start, chunk.words), [chunk])

    def ask(self, question: str) -> float:
        """Return the seconds to the first token of an answer."""
        began = time.perf_counter()
        self._append(question_text(question), [])
        return time.perf_counter() - began

    def _append(self, text: str, chunks: list[Chunk]) -> None:
        plain = self.plain
        text = text if self._id else OPENING + text
        request = plain.request(self._id or plain.new_id(), text, chunks, self.name, resumable=True)
        self.check(len(request.prompt_token_ids))
        self._id = request.request_id
        self.seen += plain.run(request)


class Resend(Uncompressed):
    """The whole prompt again for every chunk and question."""

    name = "resend"
    about = "the whole prompt again for each chunk and question, to vLLM with prefix caching"

    def __init__(self, plain: Plain) -> None:
        super().__init__(plain)
        self._text = OPENING
        self._chunks: list[Chunk] = []

    def ingest(self, chunk: Chunk) -> None:
        """See ``chunk``."""
        self._text += chunk_text(chunk.start, chunk.words)
        self._chunks.append(chunk)
        self.seen = self._send(self._text)

    def ask(self, question: str) -> float:
        """Return the seconds to the first token of an answer."""
        began = time.perf_counter()
        self._send(self._text + question_text(question))
        return time.perf_counter() - began

    def _send(self, text: str) -> int:
        self.check(SPARE)
        request = self.plain.request(self.plain.new_id(), text, self._chunks, self.name, resumable=False)
        return self.plain.run(request)


SPARE = 1024
"""Tokens that must be left for a chunk or a question: our choice."""


class Transformers(Rival):
    """The same model in Hugging Face's transformers, with a cache of the same budget and the same eviction.

    One forward pass a chunk, cut where the cache is full, as kvvideo does; the strategy is kvvideo's own.
    """

    name = "transformers"
    about = "transformers: an eager loop over a cache of the same budget, with the same eviction"

    def __init__(self, config: EngineConfig, block_size: int) -> None:
        super().__init__()
        import torch
        from transformers import AutoTokenizer, DynamicCache, Qwen2_5_VLForConditionalGeneration
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        schedule = config.cache.schedule(block_size)
        policy = load(config.cache.strategy)
        if schedule is None or policy.observes():
            raise ConfigError(f"transformers: {config.cache.strategy} needs what only kvvideo's engine shows it")
        path, text = model_path(config.model), text_config(model_path(config.model))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = computed_in(path, config)
        if config.load_format == "dummy":
            from transformers import AutoConfig, AutoModelForImageTextToText

            with self.device:
                made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path), dtype=dtype)
            self.model = made
        else:
            self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype).to(self.device)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.video = Qwen2VLVideoProcessor.from_pretrained(path, do_resize=False, cap_pixels_per_frame=False)
        self.config = self.model.config
        self.cache: Any = DynamicCache(config=self.config.text_config)
        self.schedule, heads = schedule, int(text.num_key_value_heads)
        self.layers, self.heads = int(text.num_hidden_layers), heads
        self.policies: list[Policy] = [policy(config.cache, schedule.budget) for _ in range(self.layers)]
        rope = text.rope_parameters
        self.dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self.rotary = Rotary.of(self.dim, float(rope["rope_theta"]), rope.get("mrope_section")).to(self.device)
        self.next = 0
        """M-RoPE position of the next token."""
        nothing = torch.zeros(2, heads, 0, dtype=torch.int32, device=self.device)
        self.notes = [nothing] * self.layers
        """By layer, temporal positions and places of the tokens held, ``[2, heads, n]``."""

    @property
    def live(self) -> int:
        """Tokens held."""
        return int(self.notes[0].shape[-1])

    def ingest(self, chunk: Chunk) -> None:
        """See ``chunk``."""
        self._feed(("" if self.seen else OPENING) + chunk_text(chunk.start, chunk.words), chunk)

    def ask(self, question: str) -> float:
        """Return the seconds to the first token of an answer."""
        began = time.perf_counter()
        self._feed(question_text(question), None)
        return time.perf_counter() - began

    def _feed(self, text: str, chunk: Chunk | None) -> int:
        """Compute ``text`` as the next part of the stream, or after it if it is a question; return the next token."""
        import torch

        with torch.inference_mode():
            embeddings, positions, where = self._embed(text, chunk)
            if chunk is None:
                return self._ask(embeddings, positions)
            token, at = 0, 0
            while at < len(embeddings):
                end = min(at + self.schedule.max_tokens - self.live, len(embeddings))
                token = self._forward(embeddings[at:end], positions[:, at:end])
                fresh = torch.stack([positions[0, at:end], where[at:end]]).int()[:, None].expand(-1, self.heads, -1)
                self.notes = [torch.cat([note, fresh], dim=-1) for note in self.notes]
                if self.live == self.schedule.max_tokens:
                    self._evict()
                at = end
            self.seen += len(embeddings)
            self.next = int(positions.max()) + 1
        return token

    def _ask(self, embeddings: Any, positions: Any) -> int:
        """Return the first token of an answer; the question leaves the cache as it was."""
        live = self.live
        token = self._forward(embeddings, positions)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :live], layer.values[:, :, :live]
        return token

    def _forward(self, embeddings: Any, positions: Any) -> int:
        output = self.model.model.language_model(
            inputs_embeds=embeddings[None], position_ids=positions[:, None], past_key_values=self.cache, use_cache=True
        )
        return int(self.model.lm_head(output.last_hidden_state[0, -1]).argmax())

    def _embed(self, text: str, chunk: Chunk | None) -> tuple[Any, Any, Any]:
        """Return embeddings ``[n, hidden]``, M-RoPE positions ``[3, n]`` and places ``[n]``."""
        import torch

        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if chunk is None:
            index = torch.tensor(ids, device=self.device)
            positions = self.next + torch.arange(len(ids), device=self.device).expand(3, -1)
            return self.model.get_input_embeddings()(index), positions, torch.zeros_like(index)
        frames = torch.from_numpy(chunk.frames).permute(0, 3, 1, 2)
        made = self.video([frames], do_sample_frames=False, return_tensors="pt")
        ((t, h, w),) = made["video_grid_thw"].tolist()
        merge = self.config.vision_config.spatial_merge_size
        h, w = h // merge, w // merge
        pad, count = ids.index(self.config.video_token_id), t * h * w
        index = torch.tensor(ids[:pad] + [0] * count + ids[pad + 1 :], device=self.device)
        vision = self.config.vision_config
        spacing = vision.tokens_per_second * vision.temporal_patch_size / chunk.fps
        axes = (torch.arange(t) * spacing).long(), torch.arange(h), torch.arange(w)
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).to(self.device)
        before = torch.arange(pad, device=self.device).expand(3, -1)
        after = torch.arange(len(ids) - pad - 1, device=self.device).expand(3, -1) + pad + int(grid.max()) + 1
        where = torch.zeros_like(index)
        where[pad : pad + count] = places.encode(grid)
        embeddings = self.model.get_input_embeddings()(index)
        features = self.model.model.get_video_features(
            made["pixel_values_videos"].to(self.device), made["video_grid_thw"].to(self.device)
        )
        embeddings[pad : pad + count] = torch.cat(features.pooler_output)
        return embeddings, torch.cat([before, grid + pad, after], dim=1) + self.next, where

    def _evict(self) -> None:
        for index, layer in enumerate(self.cache.layers):
            positions, where = self.notes[index]
            live = LiveCache(layer.keys[0], layer.values[0], positions, where, {}, index, self.dim**-0.5, self.rotary)
            kept = self.policies[index].select(live)
            rows = kept[None, ..., None].expand(-1, -1, -1, self.dim)
            layer.keys, layer.values = layer.keys.gather(2, rows), layer.values.gather(2, rows)
            self.notes[index] = self.notes[index].gather(2, kept.expand(2, -1, -1))

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values held, and of their side state."""
        return sum(part.nbytes for layer in self.cache.layers for part in (layer.keys, layer.values))

    def close(self) -> None:
        """Give all memory back."""
        del self.model, self.cache


RIVALS = ("kvvideo", "vllm-session", "resend", "transformers")


def open_rivals(
    config: EngineConfig, names: Sequence[str], chunks: int, per_chunk: int, closing: ExitStack
) -> tuple[list[Rival], list[str]]:
    """Open the rivals called ``names``; return them, and a line on each that cannot take part.

    Args:
        config: settings of kvvideo's engine; those that are not its cache's hold for all.
        names: some of ``RIVALS``.
        chunks: longest stream there must be room for.
        per_chunk: most tokens of a chunk.
        closing: closes them.

    Raises:
        ConfigError: if there is none of that name.
    """
    if unknown := [name for name in names if name not in RIVALS]:
        raise ConfigError(f"against: no {unknown[0]!r}; choose from {', '.join(RIVALS)}")
    found: list[Rival] = []
    left_out: list[str] = []

    def add(rival: Rival) -> None:
        closing.callback(rival.close)
        found.append(rival)

    if "kvvideo" in names:
        add(Kvvideo(config))
    uncompressed = [name for name in names if name in ("vllm-session", "resend")]
    if uncompressed:
        plain = Plain(config, (chunks + 1) * per_chunk + 2 * SPARE, chunks, len(uncompressed))
        closing.callback(plain.close)
        for name in uncompressed:
            add(VllmSession(plain) if name == "vllm-session" else Resend(plain))
    if "transformers" in names:
        try:
            add(Transformers(config, block_size()))
        except ConfigError as error:
            left_out.append(str(error))
    return found, left_out
