"""Ask a video: each question at its moment, with every frame up to then and none after."""

from pathlib import Path

import kvvideo

VIDEO = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"
QUESTIONS = ["@0:19 What colour is the letter on screen now?", "When was the letter V on screen?"]

for answer in kvvideo.analyze(VIDEO, QUESTIONS, model="tiny", max_tokens=512):
    print(f"{answer.at:g} s: {answer.answer.question} {answer.text}")
