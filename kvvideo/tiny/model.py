"""The tiny model: its architecture, its tokenizer and the files that lie beside its weights.

It is a Qwen2.5-VL in every part, only smaller, so that vLLM and transformers load it as they load the
released models. ``python -m kvvideo.tiny.model DIR`` writes everything except the weights.
"""

import json
import sys
from pathlib import Path
from typing import Any

from kvvideo import prompt
from kvvideo.times import format_time
from kvvideo.tiny import film, world

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

PATCH, MERGE, PAIR = 14, 2, 2
"""Side of a patch in pixels, patches merged per side, and frames merged in time, as in Qwen2.5-VL."""

FRAME_WIDTH, FRAME_HEIGHT = 140, 84
"""Size that the processor resizes a 16:9 picture to: 5 x 3 tokens."""

ROWS, COLUMNS = FRAME_HEIGHT // (PATCH * MERGE), FRAME_WIDTH // (PATCH * MERGE)

TOKENS = ROWS * COLUMNS
"""Video tokens of one pair of frames."""

TOKENS_PER_SECOND = 2

MAX_PIXELS = 16 * (PATCH * MERGE) ** 2
MIN_PIXELS = 4 * (PATCH * MERGE) ** 2

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

VOCABULARY = 768
"""Size of the vocabulary, special tokens included."""

# Qwen2's pre-tokenizer: words with their leading space, runs of punctuation, and digits, by twos where
# Qwen2 has one: a clock time is then two tokens to compare and copy, not three or four.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config() -> Any:
    """Return the architecture, as a ``Qwen2_5_VLConfig``."""
    from transformers import Qwen2_5_VLConfig

    first = VOCABULARY - len(SPECIALS)
    ids = {name: first + i for i, name in enumerate(SPECIALS)}
    made = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 256,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": PAIR,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        dtype="float32",
    )
    made.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    made.kvvideo_dialogue = False
    # What kvvideo makes frames as large as, unless told otherwise.
    made.kvvideo_frame_tokens = MAX_PIXELS // (PATCH * MERGE) ** 2
    return made


def _texts() -> list[str]:
    """Return the texts that the tokenizer is learnt from, the commonest most often."""
    texts = []
    for ways in world.PHRASES.values():
        for way in ways:
            for letter in world.LETTERS:
                texts += [prompt.question_text(way.format(letter=letter))] * 4
    for asked in film.PHRASES.values():
        for way in asked:
            for letter in world.LETTERS:
                clock = format_time(10.0 * world.LETTERS.index(letter))
                texts += [
                    prompt.question_text(way.format(letter=letter, time=time, clock=clock))
                    for time in ("first", "last")
                ]
            texts += [
                prompt.question_text(way.replace("the letter {letter}", "it").format(time="first", clock="4:10"))
            ] * 4
    answers = [*world.COLOURS, world.NONE, world.NOT_SEEN, *film.PLACES, *film.SIDES, *film.SAID, film.NOTHING]
    texts += [text for answer in answers for text in (answer, f"a {answer} letter", f"{answer}\n")] * 40
    texts += [way.format(letter=c, word=word) for way in film.LINES for c in "KMQ" for word in film.SAID] * 4
    texts += [*film.FILLERS] * 8
    texts += [f"{letter} {letter}" for letter in world.LETTERS] * 20
    texts += [f"{letter}" for letter in world.LETTERS] * 40
    texts += [prompt.OPENING, prompt.chunk_text(40.0)] * 40
    texts += [format_time(60.0 * i + i) for i in range(60)] * 40
    texts += ["the video shows what is seen at this time; how many letters were there before and after?"] * 4
    return texts


def tokenizer() -> Any:
    """Return a byte-level BPE ``tokenizers.Tokenizer`` in Qwen2's manner, learnt from the world's strings."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    texts = [text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in _texts()]
    texts = [text.replace(prompt.VIDEO, "") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    # The strings are few: what room they leave is filled, so that the special tokens come last.
    filler = VOCABULARY - len(SPECIALS) - made.get_vocab_size()
    made.add_tokens([AddedToken(f"<|unused_{i}|>", normalized=False) for i in range(filler)])
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    return made


def write_files(directory: Path) -> None:
    """Write config, tokenizer and processor files to ``directory``: all but the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    made = config()
    made.save_pretrained(directory)
    tokenizer().save(str(directory / "tokenizer.json"))
    end = made.text_config.eos_token_id
    pad = made.text_config.bos_token_id
    picture = {
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "temporal_patch_size": PAIR,
        "merge_size": MERGE,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    files: dict[str, dict[str, Any]] = {
        "generation_config.json": {
            "bos_token_id": pad,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
            "do_sample": False,
            "max_new_tokens": 16,
        },
        "tokenizer_config.json": {
            # Qwen2's own class would put its pre-tokenizer, with single digits, in place of ours.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "additional_special_tokens": list(SPECIALS),
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "model_max_length": 32768,
            "chat_template": CHAT_TEMPLATE,
        },
        "preprocessor_config.json": {
            **picture,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        "video_preprocessor_config.json": {
            **picture,
            "do_sample_frames": False,
            "video_processor_type": "Qwen2VLVideoProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
