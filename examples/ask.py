"""Ask a video: about a moment while it streams, and about all of it at its end."""

from pathlib import Path

import kvvideo

VIDEO = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"

engine = kvvideo.Engine(kvvideo.EngineConfig(model="tiny", cache=kvvideo.CacheConfig(max_tokens=512)))
with (
    kvvideo.VideoReader(VIDEO, min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28) as chunks,
    kvvideo.VideoSession(engine) as session,
):
    for chunk in chunks:
        session.ingest(chunk)
        if chunk.end == 20.0:
            print("0:20", session.ask("What colour is the letter on screen now?").text)
    print("the end", session.ask("When was the letter V on screen?").text)
