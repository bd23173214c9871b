"""Serve the bundled model by OpenAI's API, send it a video in chunks, and ask."""

import socket
import subprocess
import sys
from pathlib import Path

import openai

import kvvideo
from kvvideo.serve.messages import content

VIDEO = Path(__file__).parents[1] / "samples" / "letters-1m.mp4"

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
command = [sys.executable, "-m", "kvvideo", "serve", "tiny", "--max-tokens", "512", "--port", port]
with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
    try:
        # The client tries again until the server is up.
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=60)
        with kvvideo.VideoReader(VIDEO, min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28) as chunks:
            parts = content(chunks, "What colour was the letter D?")
        reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
        print(reply.choices[0].message.content)
    finally:
        server.terminate()
