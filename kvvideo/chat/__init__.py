"""``kvvideo chat``: play a video into the cache, and talk about any moment of it.

- ``player``: keeps the video playing between questions.
- ``repl``: the prompt, and the screen.
- ``chat``: what it does with each line.
- ``commands``: what can be typed, read and completed.
- ``panel``: what the cache holds, drawn.
- ``dialogue``: what was said, and its export.
- ``hints``: warns when little is held of the moment that is talked about.
"""
