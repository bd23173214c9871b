"""Make prompts in the form vLLM's engine takes: token ids, and frames cut into patches.

vLLM's own way there is the model's processor, which settles its options anew for every prompt and copies the frames
several times. A stream's never change, so one copy is all it takes; what comes out is the same to the last bit. But
the time between frames, which vLLM rounds to the model's dtype, is kept as it is, for M-RoPE positions come from it.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.inputs import MultiModalInput, TokensInput
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

from kvvideo.errors import EngineError
from kvvideo.types import Chunk

_VIDEO = "video"


class Inputs:
    """Makes prompts for one model.

    Args:
        hf_config: a ``Qwen2_5_VLConfig``.
        tokenizer: the model's.
    """

    def __init__(self, hf_config: Any, tokenizer: Any) -> None:
        vision = hf_config.vision_config
        self._sides = int(vision.temporal_patch_size), int(vision.spatial_merge_size), int(vision.patch_size)
        self._video_token, self._tokenizer = int(hf_config.video_token_id), tokenizer
        self._numbers = itertools.count(1)

    def __call__(self, text: str, *chunks: Chunk) -> TokensInput | MultiModalInput:
        """Return the prompt of ``text``, which has a place for the frames of each of ``chunks``.

        Raises:
            EngineError: if the frames cannot be cut into patches.
        """
        ids = self._tokenizer(text)["input_ids"]
        if not chunks:
            return of_tokens(ids)
        pairs, merge, patch = self._sides
        cut = [patches(chunk.frames, pairs, merge, patch) for chunk in chunks]
        places, offset = [], 0
        for pixels, _ in cut:
            offset, count = ids.index(self._video_token, offset), len(pixels) // merge**2
            ids[offset : offset + 1] = [self._video_token] * count
            places.append(PlaceholderRange(offset, count))
            offset += count
        data: Any = {
            "pixel_values_videos": cut[0][0] if len(cut) == 1 else torch.cat([pixels for pixels, _ in cut]),
            "video_grid_thw": torch.tensor([grid for _, grid in cut]),
            "second_per_grid_ts": torch.tensor([pairs / chunk.fps for chunk in chunks]),
        }
        each = MultiModalFieldConfig.batched(_VIDEO, keep_on_cpu=True)
        whole = MultiModalFieldConfig.flat_from_sizes(_VIDEO, torch.tensor([len(pixels) for pixels, _ in cut]))
        fields = {"pixel_values_videos": whole, "video_grid_thw": each, "second_per_grid_ts": each}
        return mm_input(
            ids,
            MultiModalKwargsItems.from_hf_inputs(data, fields),
            # Never the same twice: what a tower made of one chunk is not asked for again.
            {_VIDEO: [f"frames-{next(self._numbers)}" for _ in chunks]},
            {_VIDEO: places},
        )


def of_tokens(token_ids: list[int]) -> TokensInput:
    """Return the prompt of these token ids and no more."""
    return tokens_input(token_ids)


def patches(
    frames: npt.NDArray[np.uint8], pairs: int, merge: int, patch: int
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Cut frames into patches, as a vision tower takes them; the model itself makes numbers around zero of the bytes.

    Args:
        frames: ``[count, height, width, 3]``.
        pairs: frames that one patch spans; the last frame is repeated where one lacks.
        merge: patches, across and down, that become one token, and so follow each other.
        patch: side of a patch, in pixels.

    Returns:
        Patches ``[time * down * across, 3 * pairs * patch * patch]`` and ``(time, down, across)``.

    Raises:
        EngineError: if ``frames`` are not made of whole tokens.
    """
    if lacking := -len(frames) % pairs:
        frames = np.concatenate([frames, *[frames[-1:]] * lacking])
    count, height, width, colours = frames.shape
    if height % (merge * patch) or width % (merge * patch) or not frames.size:
        raise EngineError(
            f"frames of {width} x {height} pixels cannot be shown to this model; both must be multiples of "
            f"{merge * patch}"
        )
    grid = count // pairs, height // patch, width // patch
    cut = frames.reshape(grid[0], pairs, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, colours)
    # NumPy's copy is faster than torch's on one thread, and many are slower than one where cores are busy.
    flat = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(grid[0] * grid[1] * grid[2], -1)
    return torch.from_numpy(flat), grid
