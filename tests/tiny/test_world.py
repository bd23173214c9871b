"""The synthetic world, and that training sees what inference will."""

from pathlib import Path

import numpy as np
import pytest

from kvvideo import prompt
from kvvideo.times import format_time, parse_time
from kvvideo.tiny import film, model, world
from kvvideo.tiny.training import packing, streams
from kvvideo.tiny.training.packing import Ask, ChunkPlan


def test_a_clip_is_a_pure_function_of_its_seed_and_the_time():
    clip, again = world.Clip(3, 12), world.Clip(3, 12)
    assert clip.slots == again.slots
    later = clip.frame(20.5)
    assert later.shape == (world.HEIGHT, world.WIDTH, 3)
    assert later.dtype == np.uint8
    clip.frame(1.0)
    assert np.array_equal(clip.frame(20.5), again.frame(20.5))
    assert not np.array_equal(later, world.Clip(4, 12).frame(20.5))


def test_letters_are_unique_and_visible():
    clip = world.Clip(5, 60, density=0.6)
    letters = [slot.letter for slot in clip.slots if slot.letter]
    assert len(letters) == len(set(letters)) == 26
    for slot in clip.slots:
        if slot.colour:
            frame = clip.frame(slot.start + 2).astype(int)
            near = np.abs(frame - np.array(world.COLOURS[slot.colour])).sum(axis=2) < 90
            assert near.mean() > 0.005, slot


def test_answers_follow_from_the_slots():
    clip = world.Clip(8, 40, density=0.4)
    shown = {slot.letter: slot for slot in clip.slots if slot.letter}
    asked = clip.questions(np.random.default_rng(0), 400)
    assert asked[-1].t is None
    assert {question.kind for question in asked} == set(streams.WEIGHTS)
    for question in asked:
        now = clip.duration if question.t is None else question.t
        current = clip.slots[clip.slot_index(now)]
        letter = next((c for c in question.q.rstrip("?").split() if len(c) == 1 and c != "a"), None)
        if question.kind == "now":
            assert question.answer == (current.letter or "none")
        elif question.kind == "now colour":
            assert question.answer == (current.colour or "none")
        elif letter not in shown or shown[letter].start > now:
            assert (question.answer, question.age) == ("not seen", None)
        elif question.kind == "colour":
            assert question.answer == shown[letter].colour
        else:
            assert parse_time(question.answer) == shown[letter].start


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    from kvvideo.tiny.training import train

    directory = tmp_path_factory.mktemp("model")
    model.write_files(directory)
    return train.encoder(directory)


def test_the_tokenizer_knows_the_worlds_words(encode):
    places = [*film.PLACES, *film.SIDES, *film.SAID, film.NOTHING, "1", "6"]
    for word in [*world.COLOURS, *world.LETTERS, "none", *places, *(f" {word}" for word in film.SAID)]:
        assert len(encode(word)) == 1, word
    assert len(encode(world.NOT_SEEN)) == 2
    assert all(len(encode(format_time(60 * i + (i + 7) % 60))) == 3 for i in range(60))
    tokens = model.tokenizer()
    for text in ("Zwölf Boxkämpfer 猫 1:02:03", prompt.OPENING):
        assert tokens.decode(tokens.encode(text).ids, skip_special_tokens=False) == text


def _stream(rng, chunks):
    return [ChunkPlan(8.0 + 4.0 * i, rng.integers(0, 50, 4), words="it is late" * (i == 1)) for i in range(chunks)]


def test_a_fork_is_the_prompt_with_its_question(encode):
    rng = np.random.default_rng(0)
    ask = Ask(2, 3, "When did the letter K appear?", "0:12", 1, 0.0)
    packed = packing.pack(_stream(rng, 4), [ask], encode)
    limit = int(packed.limit[0])
    got = np.concatenate([packed.ids[:limit], packed.ids[len(packed.times) :]])
    text = prompt.OPENING + "".join(prompt.chunk_text(t, "it is late" * (t == 12.0)) for t in (8.0, 12.0, 16.0))
    text += prompt.question_text(ask.q) + ask.answer
    pad = int(encode("<|video_pad|>")[0])
    expected = []
    for token in encode(text):
        video = expected.count(pad)
        count = 1 if token != pad else model.TOKENS * (4 if video < 8 * model.TOKENS else 3)
        expected += [int(token)] * count
    assert got.tolist() == expected


@pytest.fixture(scope="module")
def whole():
    torch = pytest.importorskip("torch")
    from kvvideo.tiny.training import train

    train.prepare_imports()
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    made = Qwen2_5_VLForConditionalGeneration(model.config()).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return made


def test_vision_over_many_pairs_is_the_models_own(whole):
    import torch

    from kvvideo.tiny.training.compute import Vision, patchify

    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (6, 2, 84, 140, 3), np.uint8))
    with torch.no_grad():
        mine = Vision(whole.model.visual, whole.config.vision_config, torch.device("cpu"))(frames)
        grid = torch.tensor([[6, 6, 10]])
        theirs = whole.model.visual(patchify(frames).flatten(0, 1), grid_thw=grid).pooler_output
    torch.testing.assert_close(mine.flatten(0, 1), theirs, atol=1e-4, rtol=1e-4)


def test_patches_are_the_video_processors(tmp_path):
    import torch

    from kvvideo.tiny.training import train
    from kvvideo.tiny.training.compute import patchify

    train.prepare_imports()
    from transformers import AutoProcessor

    model.write_files(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    frames = np.random.default_rng(1).integers(0, 256, (6, 84, 140, 3), np.uint8)
    made = processor(
        text=[prompt.OPENING + prompt.chunk_text(0)], videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)]
    )
    assert np.asarray(made["video_grid_thw"]).tolist() == [[3, 6, 10]]
    mine = patchify(torch.from_numpy(frames).view(3, 2, 84, 140, 3)).flatten(0, 1)
    theirs = torch.as_tensor(np.asarray(made["pixel_values_videos"]))
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_a_packed_stream_gives_what_each_fork_gives_alone(whole, encode):
    import copy

    import torch

    from kvvideo.tiny.training import compute

    rng = np.random.default_rng(2)
    bank = torch.randn(50 * model.TOKENS, 256, generator=torch.Generator().manual_seed(0))
    asks = [
        Ask(3, 4, "What colour was the letter K?", "red", 0, 0.0),
        Ask(1, 1, "When did the letter Q appear?", "0:12", 1, 0.0),
        Ask(
            5, 2, "Which letter is on screen now?", "none", 3, 0.0, before=(("When did the letter Q appear?", "0:12"),)
        ),
    ]
    both = [packing.pack(_stream(rng, n), asks, encode) for n in (6, 8)]
    batch = packing.collate(both)
    changed = copy.deepcopy(whole)
    compute.use_packed_attention(changed)
    with torch.no_grad():
        together = compute.answer_logits(changed, batch, bank)
        alone = []
        for packed in both:
            for number, ask in enumerate(asks):
                stream = len(packed.times)
                fork = stream + np.flatnonzero(packed.fork == number)
                index = np.concatenate([np.arange(int(packed.limit[fork[0] - stream])), fork])
                cells = torch.from_numpy(packed.cells[index])
                embeds = whole.model.language_model.embed_tokens(torch.from_numpy(packed.ids[index]))
                embeds[cells >= 0] = bank[cells[cells >= 0]]
                mask = torch.ones(len(index), len(index), dtype=torch.bool).tril()
                bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
                out = whole.model.language_model(
                    inputs_embeds=embeds[None],
                    position_ids=torch.from_numpy(packed.positions[:, None, index]),
                    attention_mask={"full_attention": bias[None, None]},
                ).last_hidden_state[0]
                alone.append(whole.lm_head(out[-len(encode(ask.answer)) - 1 :]))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=2e-4)


def test_positions_are_vllms():
    relative = packing.grid_positions(4, 2.0)
    assert relative.shape == (3, 4 * model.TOKENS)
    assert relative[0].max() == 6
    assert relative[1].max() == model.ROWS - 1
    assert relative[2].max() == model.COLUMNS - 1


def test_a_sample_shows_what_its_truth_says(tmp_path):
    import json

    import av

    from kvvideo.tiny import samples

    out, truth = tmp_path / "videos" / "clip.mp4", tmp_path / "truth.jsonl"
    out.parent.mkdir()
    asked = samples.make(out, 11, 0.5, truth)
    line = json.loads(truth.read_text())
    assert (line["id"], line["video"]) == ("clip", "videos/clip.mp4")
    assert [q["answer"] for q in line["questions"]] == [q.answer for q in asked]
    times = [q["t"] for q in line["questions"] if q["t"] is not None]
    assert [parse_time(t) for t in times] == [q.t for q in asked if q.t is not None]
    clip = world.Clip(11, 8)
    with av.open(str(out)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 8 * 32
    assert out.stat().st_size < 400_000
    for time, picture in frames[::20]:
        assert np.abs(picture.astype(int) - clip.frame(time)).mean() < 12


def test_the_loaded_tokenizer_is_the_one_trained_with():
    from kvvideo.plugin import compat
    from kvvideo.tiny.training import train

    compat.prepare()
    from transformers import AutoProcessor, AutoTokenizer

    from kvvideo.session.engine import model_path

    directory = model_path("tiny")
    text = prompt.OPENING + prompt.chunk_text(184.0) + prompt.question_text("When did the letter K appear?")
    wanted = train.encoder(Path(directory))(text).tolist()
    assert AutoTokenizer.from_pretrained(directory)(text).input_ids == wanted
    assert AutoProcessor.from_pretrained(directory).tokenizer(text).input_ids == wanted
