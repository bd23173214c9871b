"""How a run looks again: what is said where it cannot."""

from dataclasses import replace

import pytest

from kvvideo.runs.recall import Looking, of_memory
from kvvideo.session.memory import INDEX
from tests.storage.test_memory_file import memory


@pytest.mark.parametrize("count", [0, 4])
def test_one_line_says_that_an_old_memory_has_nothing_to_find_chunks_by(count: int) -> None:
    new, said = memory(), list[str]()
    old = replace(new, tensors={name: tensor for name, tensor in new.tensors.items() if name not in INDEX})
    for some in (old, replace(old, chunks=0), new):
        of_memory(some, Looking(count), None, None, said.append)
    missing = "neither the video nor its frames are at hand, so no question looks again"
    older = "the memory was made by an older version, so no question looks again at what it has seen"
    assert said == ([older, missing, missing] if count else [])
