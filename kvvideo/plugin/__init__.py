"""The only room that knows vLLM: its release 0.32.0, mostly through its official extension points.

``register`` is the entry point that vLLM calls in every process, and ``surface`` lists every name that is touched.
In the engine, ``attention`` compacts the cache inside the layers, over ``backends`` and ``pages``; ``spec`` tells the
allocator what that frees; ``scheduler`` folds sessions and forks them for questions; ``model`` keeps M-RoPE right after
a fold. The rest of kvvideo reaches vLLM through ``engine``, ``sampling``, ``inputs``, ``server`` and ``platform``, and
what the workers hold through ``inspect``, ``snapshot``, ``rebase`` and ``switch``.
"""
