"""The published JSON Schemas are those of the models."""

from importlib import resources

import pytest

from kvvideo.outputs.schema.__main__ import documents, text

DOCUMENTS = documents()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_files_are_as_the_models_say(name: str):
    """After a change of a model, ``python -m kvvideo.outputs.schema`` writes them anew."""
    found = (resources.files("kvvideo.outputs") / "schema" / name).read_text(encoding="utf-8")
    assert found == text(DOCUMENTS[name])
