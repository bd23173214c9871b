"""All that knows vLLM's internals: written against 0.32.0, through its official extension points.

``register`` is the entry point vLLM calls in every process. ``attention`` compacts the cache inside
the attention layers, ``spec`` tells vLLM's allocator what that frees, ``scheduler`` folds sessions
and forks them for questions, ``model`` keeps M-RoPE right after a fold.
"""
