"""Settings that vLLM, and the libraries that it computes with, take from the environment only.

Each stands as the person has set it, but for the one that sessions cannot do without.
"""

import logging
import os


def set_environment() -> None:
    """Prepare for an engine in this process. Call it before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    set_common()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Ranks of tensor parallelism that are forked cannot use their GPUs once this process has asked for one.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    quiet_transformers()
    # vLLM logs while it is imported, before it has configured its logger from this.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def quiet_transformers() -> None:
    """Have transformers say errors only. Call it before it is imported, which is when it looks."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def set_common() -> None:
    """Prepare for any engine, in this process or started by it."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for answers
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # On the CPU oneDNN keeps a compiled kernel for every batch size it meets, 1024 by default; that is
    # memory that grows for minutes. vLLM's layers keep their latest 32 anyway.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
