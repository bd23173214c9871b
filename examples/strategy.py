"""A strategy of your own: a uniform sample of all that was seen, whatever its age, beside the default."""

from pathlib import Path

from torch import Tensor

import kvvideo
from kvvideo.compression.policy import LiveCache, ScorePolicy

VIDEO = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"
QUESTION = "What colour was the letter D?"


class Reservoir(ScorePolicy):
    """Keeps the tokens with the highest lots. A token's lot never changes."""

    summary = "keeps sinks, recent, and a uniform sample of the rest"
    source = "Vitter, Random sampling with a reservoir, 1985"

    def score(self, live: LiveCache) -> Tensor:
        """Return the lot of each token, ``float32 [kv_heads, n]``."""
        return ((live.positions.long() * 40503 + live.places.long() * 2654435761) % 65521).float()


kvvideo.compression.register("reservoir", Reservoir)
for name in ("reservoir", "distinct"):
    for answer in kvvideo.analyze(VIDEO, QUESTION, model="tiny", strategy=name, max_tokens=256):
        print(name, answer.text, answer.cache.live, answer.held)
