"""Commands that are interrupted end as they should, whenever it is."""

import os
import subprocess
import sys
from pathlib import Path

TIMES = int(os.environ.get("KVVIDEO_TEST_INTERRUPTS", "8"))


def test_commands_that_are_interrupted_at_random_moments_end_in_order():
    script = Path(__file__).with_name("interrupted.py")
    result = subprocess.run(
        [sys.executable, script, "--times", str(TIMES)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout.endswith("\n0 faults\n")
