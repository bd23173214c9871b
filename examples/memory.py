"""Save what is held of a video to a file, and ask that file later, without the video."""

import tempfile
from pathlib import Path

import kvvideo
from kvvideo.storage.file import write

VIDEO = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"
QUESTION = "What colour was the letter D?"

engine = kvvideo.Engine(kvvideo.EngineConfig(model="tiny", cache=kvvideo.CacheConfig(max_tokens=512)))
with (
    kvvideo.VideoReader(VIDEO, min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28) as chunks,
    kvvideo.VideoSession(engine) as session,
):
    for chunk in chunks:
        session.ingest(chunk)
    print("the session says", session.ask(QUESTION).text)
    memory = session.save()

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "letters.kvv"
    write(path, memory)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {memory.live} of {memory.live + memory.evicted} tokens")
    with kvvideo.MemoryFile(path) as file, kvvideo.VideoSession.load(engine, file.memory()) as session:
        print("the file says", session.ask(QUESTION).text)
