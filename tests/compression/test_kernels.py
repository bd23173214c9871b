"""The GPU's kernels do what torch does elsewhere. Without a GPU they run in Triton's interpreter, slowly but truly."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.engines import ON_GPU

if ON_GPU:
    from tests.helpers.gpu_kernels import *  # noqa: F403
else:

    def test_kernels_in_the_interpreter() -> None:
        """In a process of its own, for Triton asks once, while it is imported, whether to interpret."""
        here = Path(__file__).parent
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "gpu_kernels.py")]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "passed" in result.stdout
        assert "skipped" not in result.stdout
