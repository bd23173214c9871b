"""Where vLLM spends a step: the methods to time, by what they do."""

from collections.abc import Iterator
from typing import Any

from kvvideo.plugin.inspect import bounded_layers

SCHEDULER = {"scheduling": ("schedule", "update_from_output", "fold", "add_request")}

RUNNER = {
    "inputs": ("_update_states", "_prepare_inputs", "_build_attention_metadata"),
    "embedding": ("_preprocess",),
    "vision": ("_execute_mm_encoder",),
    "language": ("_model_forward",),
    "sampling": ("sample_tokens",),
}

MODEL = {"sampling": ("compute_logits",)}

LAYER = {
    "writing": ("do_kv_cache_update",),
    "attention": ("forward",),
    "state": ("after_attention",),
    "watching": ("watch",),
    "compacting": ("compact",),
}
"""Of the ``impl`` of an attention layer. Not every backend writes keys and values by a method of its own."""


def stages(core: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield ``(stage, owner, method)`` for every method of ``core``'s engine that is worth timing.

    Args:
        core: vLLM's ``EngineCore``, in this process, of an engine whose cache is bounded.
    """
    worker = core.model_executor.driver_worker.worker
    runner = worker.model_runner
    owners: list[tuple[Any, dict[str, tuple[str, ...]]]] = [
        (core.scheduler, SCHEDULER),
        (runner, RUNNER),
        (runner.model, MODEL),
        *((layer.impl, LAYER) for layer in bounded_layers(worker)),
    ]
    for owner, parts in owners:
        for stage, methods in parts.items():
            for method in methods:
                yield stage, owner, method
