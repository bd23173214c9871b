"""The last chunks only, read anew for every question: ``kvvideo.session.recent`` does it.

The policy itself is the sliding window, for requests without such a session, as in ``vllm serve``.
"""

from kvvideo.compression.strategies.window import Window


class Recent(Window):
    """The sliding window, where no session reads the last chunks anew."""

    summary = "keeps no cache: each question reads the last chunks anew"
    source = "last frames only: SimpleStream, arXiv 2604.02317"
