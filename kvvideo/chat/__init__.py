"""``kvvideo chat``: play a video into the cache, and talk about any moment of it.

- ``opening``: opens the video, or a saved memory.
- ``player``: keeps the video playing between questions.
- ``repl``, ``screen``, ``signals``: read lines, show what comes of them, end on signals.
- ``commands``: what can be typed, read and completed.
- ``chat``: has each line done: by ``asking``, ``moving``, ``looking``, ``changing`` or ``files``.
- ``dialogue``: what was said, and its export.
- ``hints``: warns when little is held of the moment that is talked about.
- ``panel``: what the cache holds, drawn.
- ``scratch``: a place for checkpoints while the chat lasts.
"""
