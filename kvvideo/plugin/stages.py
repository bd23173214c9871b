"""Name the methods in which vLLM spends a step, for measuring, by what they do."""

from collections.abc import Iterator
from typing import Any

from kvvideo.plugin.inspect import bounded_layers

Stages = dict[str, tuple[str, ...]]
"""Methods of one object by stage."""

SCHEDULER: Stages = {"scheduling": ("schedule", "update_from_output", "fold", "add_request")}

RUNNER: Stages = {
    "inputs": ("_update_states", "_prepare_inputs", "_build_attention_metadata"),
    "embedding": ("_preprocess",),
    "vision": ("_execute_mm_encoder",),
    "language": ("_model_forward",),
    "sampling": ("sample_tokens",),
}

MODEL: Stages = {"sampling": ("compute_logits",)}

LAYER: Stages = {
    "writing": ("do_kv_cache_update",),
    "attention": ("forward",),
    "state": ("after_attention",),
    "indexing": ("index",),
    "watching": ("watch",),
    "compacting": ("compact",),
}
"""Methods of an attention layer's ``impl``. Not every backend writes keys and values by one of its own."""


def stages(core: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield ``(stage, owner, method)`` for every method of ``core``'s engine that is worth timing.

    Args:
        core: vLLM's ``EngineCore``, in this process, of an engine whose cache is bounded.
    """
    worker = core.model_executor.driver_worker.worker
    runner = worker.model_runner
    owners: list[tuple[Any, Stages]] = [
        (core.scheduler, SCHEDULER),
        (runner, RUNNER),
        (runner.model, MODEL),
        *((layer.impl, LAYER) for layer in bounded_layers(worker)),
    ]
    for owner, parts in owners:
        for stage, methods in parts.items():
            for method in methods:
                yield stage, owner, method
