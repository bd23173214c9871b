"""Settings that vLLM takes from the environment only."""

import logging
import os


def set_environment() -> None:
    """Set them, where the person has not. Call it before vLLM is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for answers
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Ranks of tensor parallelism that are forked cannot use their GPUs once this process has asked for one.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # On the CPU oneDNN keeps a compiled kernel for every batch size it meets, 1024 by default; that is
    # memory that grows for minutes. vLLM's layers keep their latest 32 anyway.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    # vLLM logs while it is imported, before it has configured its logger from this.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
