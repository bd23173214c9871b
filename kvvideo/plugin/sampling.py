"""Make a request's sampling parameters, and read what it generated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from kvvideo.compression.config import FORK_OF, LOOKS, SHOWN_AT
from kvvideo.errors import ConfigError


class Generated(NamedTuple):
    """An answer so far.

    Attributes:
        text: its words.
        token_ids: its tokens, the end marker included.
        logprobs: natural logarithm of each token's probability, if they were asked for; else empty.
        finish_reason: vLLM's word for why it ended; empty if it goes on.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


def reading() -> SamplingParams:
    """Return parameters of a request that only computes its prompt.

    vLLM needs one token sampled to end a turn of a session, and drops it again.
    """
    return SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)


def looking(session_id: str) -> SamplingParams:
    """Return parameters of a question whose queries are wanted, and no answer.

    Args:
        session_id: session on whose fork it is asked.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=0,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.CUMULATIVE,
        extra_args={FORK_OF: session_id, LOOKS: True},
    )


def answering(
    session_id: str | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    logprobs: bool,
    shown_at: Sequence[int] = (),
) -> SamplingParams:
    """Return parameters of a question.

    Args:
        session_id: session on whose fork it is asked; None for a request of its own.
        max_tokens: longest answer, in tokens.
        temperature: 0 is greedy.
        seed: of the sampling; None for vLLM's.
        logprobs: True for the log probability of each token.
        shown_at: M-RoPE positions at which the first chunks of the question were streamed; those after them, and its
            words, go on where the session stands.

    Raises:
        ConfigError: if vLLM refuses to sample like this.
    """
    try:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            logprobs=0 if logprobs else None,
            output_kind=RequestOutputKind.CUMULATIVE,
            extra_args={FORK_OF: session_id, SHOWN_AT: [*shown_at]} if session_id else None,
        )
    except ValueError as error:
        raise ConfigError(f"vLLM refuses to sample like this: {error}") from error


def generated(output: Any) -> Generated:
    """Return what vLLM's ``RequestOutput`` holds."""
    result = output.outputs[0]
    tokens = tuple(result.token_ids)
    scores = tuple(step[token].logprob for token, step in zip(tokens, result.logprobs or (), strict=False))
    return Generated(result.text, tokens, scores, result.finish_reason or "")
