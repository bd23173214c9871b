"""Options that several commands share, and what they add up to."""

from typing import Annotated

import typer

from kvvideo.config import CacheConfig
from kvvideo.session import EngineConfig

CACHE, MODEL, VIDEO = "Cache", "Model", "Video"

Model = Annotated[
    str, typer.Option("--model", "-m", help="Hub name or directory; 'tiny' is bundled.", rich_help_panel=MODEL)
]
Strategy = Annotated[
    str, typer.Option("--strategy", "-s", help="What to keep; see 'kvvideo strategies'.", rich_help_panel=CACHE)
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", help="Compact the cache when it holds this many tokens.", rich_help_panel=CACHE)
]
Ratio = Annotated[float, typer.Option("--ratio", help="Share of --max-tokens to keep.", rich_help_panel=CACHE)]
Budget = Annotated[
    int | None, typer.Option("--budget", help="Tokens to keep, instead of --ratio.", rich_help_panel=CACHE)
]
Sink = Annotated[int, typer.Option("--sink", help="First tokens that are always kept.", rich_help_panel=CACHE)]
Window = Annotated[
    int | None,
    typer.Option("--window", help="Most recent tokens that are always kept.", rich_help_panel=CACHE),
]
Queries = Annotated[
    int | None,
    typer.Option(
        "--queries", help="Last queries of each step that are watched (h2o, snapkv); 0: all.", rich_help_panel=CACHE
    ),
]
ScoreNorm = Annotated[
    str, typer.Option("--score-norm", help="Attention received (h2o): sum or mean.", rich_help_panel=CACHE)
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions", help="absolute, or contiguous: close the gaps that eviction leaves.", rich_help_panel=CACHE
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.", rich_help_panel=MODEL)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", rich_help_panel=MODEL)]
MaxModelLen = Annotated[
    int,
    typer.Option(
        "--max-model-len",
        help="Longest request for vLLM; limits the live cache, not the video.",
        rich_help_panel=MODEL,
    ),
]

DEFAULT_MODEL = EngineConfig.model
_CACHE = CacheConfig()
STRATEGY, MAX_TOKENS, RATIO, SINK = _CACHE.strategy, _CACHE.max_tokens, _CACHE.ratio, _CACHE.sink
SCORE_NORM, POSITIONS = _CACHE.score_norm, _CACHE.positions
MAX_MODEL_LEN = EngineConfig.max_model_len


def cache_config(
    strategy: str, max_tokens: int, ratio: float, budget: int | None, sink: int, window: int | None,
    queries: int | None, score_norm: str, positions: str,
) -> CacheConfig:  # fmt: skip
    """The cache settings that these options describe."""
    return CacheConfig(strategy, max_tokens, ratio, budget, sink, window, queries, score_norm, positions)
