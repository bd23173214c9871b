"""The plug-in as ``vllm serve`` runs it: vLLM loads it by its entry point, in an engine process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.engines import BUDGET, MAX_TOKENS, SINK
from tests.helpers.reference import Model
from tests.plugin.test_reference import check_generated, ids, stream_of

pytestmark = pytest.mark.slow

_PROGRAM = """
import json, sys
from kvvideo.plugin import compat
compat.prepare()
from kvvideo.compression.config import FORK_OF
from kvvideo.session.arguments import engine_args

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    settings = json.loads(sys.stdin.read())
    llm = LLM(
        settings["model"], dtype="float32", max_model_len=2048, enforce_eager=True, block_size=32,
        skip_mm_profiling=True, kv_cache_memory_bytes=32 << 20, max_num_batched_tokens=256,
        limit_mm_per_prompt={"video": 1, "image": 0}, **engine_args(**settings["cache"]),
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in settings["prompts"]]
    params = SamplingParams(max_tokens=100, temperature=0, logprobs=0, ignore_eos=True)
    stray = SamplingParams(max_tokens=5, extra_args={FORK_OF: "nobody"})
    refused = llm.generate(prompts[:1], stray, use_tqdm=False)[0].outputs[0]
    said = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    print(json.dumps({
        "client": type(llm.llm_engine.engine_core).__name__,
        "refused": refused.finish_reason,
        "token_ids": [list(one.token_ids) for one in said],
        "logprobs": [[s[t].logprob for t, s in zip(one.token_ids, one.logprobs)] for one in said],
    }))
"""


@pytest.mark.timeout(300)
def test_an_engine_in_another_process(model_dir: str, reference: Model, tmp_path: Path):
    """It computes the same, and a question about an unknown session fails without taking it down."""
    cache = {"strategy": "streaming", "max_tokens": MAX_TOKENS, "budget": BUDGET, "sink": SINK}
    prompts = [ids(500, 1), ids(70, 2)]
    program = tmp_path / "program.py"  # a file, for each process that vLLM spawns imports it again
    program.write_text(_PROGRAM)
    changes = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)],
        input=json.dumps({"model": model_dir, "cache": cache, "prompts": prompts}),
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.strip().splitlines()[-1])
    assert got["client"] == "SyncMPClient"
    assert got["refused"] == "error"
    for prompt, token_ids, logprobs in zip(prompts, got["token_ids"], got["logprobs"], strict=True):
        stream = stream_of(reference, "streaming")
        stream.feed(reference.tokens(prompt))
        check_generated(stream, token_ids, logprobs)
        assert stream.compactions > 0
