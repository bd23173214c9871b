"""Captions that are summarised as they age, and the last chunks: ``kvvideo.session.summary`` does it.

The policy itself is the sliding window, for requests without such a session, as in ``vllm serve``.
"""

from kvvideo.compression.strategies.window import Window


class Summary(Window):
    """The sliding window, where no session writes captions."""

    summary = "keeps captions and the last chunks; 'tiny' cannot write any"
    source = "captions: rLiVS, arXiv 2510.17364; recursive summaries: arXiv 2109.10862"
