"""A strategy of your own: a uniform sample of all that was seen, whatever its age, beside the default."""

from pathlib import Path

from torch import Tensor

import kvvideo
from kvvideo.compression.policy import LiveCache, ScorePolicy


class Reservoir(ScorePolicy):
    """Keeps the tokens with the highest lots. A token's lot never changes."""

    summary = "keeps sinks, recent, and a uniform sample of the rest"
    source = "Vitter, Random sampling with a reservoir, 1985"

    def score(self, live: LiveCache) -> Tensor:
        """Return the lot of each token, ``float32 [kv_heads, n]``."""
        return ((live.positions.long() * 40503 + live.places.long() * 2654435761) % 65521).float()


kvvideo.compression.register("reservoir", Reservoir)
engine = kvvideo.Engine(kvvideo.EngineConfig(model="tiny", cache=kvvideo.CacheConfig("reservoir", max_tokens=256)))
for name in ("reservoir", "distinct"):
    engine.use(kvvideo.CacheConfig(name, max_tokens=256))
    video = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"
    with kvvideo.VideoReader(video, max_pixels=16 * 28 * 28) as chunks, kvvideo.open_session(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        print(name, session.ask("What colour was the letter D?").text, session.stats().live, session.held())
