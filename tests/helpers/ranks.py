"""Streams into an engine of some ranks of tensor parallelism, and writes down what each strategy then holds and says.

A program of its own, for vLLM starts the ranks as new processes, which run this file's imports first.
"""

import sys
from typing import Any

from kvvideo.plugin import compat

compat.prepare()

MAX_TOKENS, SINK = 128, 20
QUESTION = "Which letter is on screen now?"


def count(worker: Any, begin: bool) -> tuple[int, int]:
    """Return how often this rank exchanged something with others since ``begin``, and how often while compacting."""
    from vllm.distributed.parallel_state import GroupCoordinator

    from kvvideo.plugin.attention import BoundedImpl

    if begin:
        worker.said, worker.inside, worker.meanwhile = 0, False, 0

        def counted(original: Any) -> Any:
            def exchange(*args: Any, **kwargs: Any) -> Any:
                worker.said += 1
                worker.meanwhile += worker.inside
                return original(*args, **kwargs)

            return exchange

        def watched(*args: Any, _original: Any = BoundedImpl.after_attention) -> None:
            worker.inside = True
            _original(*args)
            worker.inside = False

        BoundedImpl.after_attention = watched  # type: ignore[method-assign]
        for name in ("all_reduce", "all_gather", "reduce_scatter", "gather", "broadcast", "send", "recv"):
            setattr(GroupCoordinator, name, counted(getattr(GroupCoordinator, name)))
    return worker.said, worker.meanwhile


def main(path: str, ranks: int, strategies: list[str]) -> None:
    import torch

    from kvvideo.compression.config import CacheConfig
    from kvvideo.session import Engine, EngineConfig, VideoSession
    from kvvideo.session.pool import with_room_for
    from tests.helpers import engines

    caches = [CacheConfig(strategy=name, max_tokens=MAX_TOKENS, sink=SINK) for name in strategies]
    options = {**(engines.GPU_OPTIONS if engines.ON_GPU else {}), "tensor_parallel_size": ranks}
    config = EngineConfig("tiny", caches[0], "float32", max_model_len=2048, questions=2, options=options)
    engine = Engine(with_room_for(caches, config))
    engine.llm.collective_rpc(count, args=(True,))
    found: dict[str, Any] = {"blocks": engine.blocks}
    for cache in caches:
        engine.use(cache)
        with VideoSession(engine) as session:
            chunks = engines.clips(14)
            for chunk in chunks[:-1]:
                session.ingest(chunk)
            said = engine.llm.collective_rpc(count, args=(False,))
            memory = session.save()
            with VideoSession.load(engine, memory) as loaded:
                ends = []
                for one in (session, loaded):
                    one.ingest(chunks[-1])
                    answer = one.ask(QUESTION, max_tokens=4, logprobs=True)
                    (found_again,) = one.find([QUESTION], 4)
                    ends.append((answer.token_ids, answer.logprobs, one._live_positions(), found_again))
            found[cache.strategy] = {
                "ends": ends,
                "tensors": memory.tensors,
                "stats": session.stats(),
                "said": said,
                "timeline": [span.share for span in session.timeline()],
            }
    torch.save(found, path)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","))
