"""qwen-vl-utils, whose sizes and frames are held against ours."""

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def qwen() -> ModuleType:
    """``qwen_vl_utils.vision_process``, also where torchvision was built for another torch; it reads with decord."""
    importlib.import_module("kvvideo.plugin.compat").prepare()
    module = importlib.import_module("qwen_vl_utils.vision_process")
    module.FORCE_QWENVL_VIDEO_READER = "decord"
    return module
