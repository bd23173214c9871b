"""One check, in this process: ``python -m kvvideo.doctor NAME MODEL`` prints its findings, a line of JSON each."""

import importlib
import json
import os
import sys
from dataclasses import asdict

from kvvideo.doctor.checks import CHECKS


def main(name: str, model: str) -> None:
    """Run the check called ``name``."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between findings
    module, _, function = CHECKS[name].partition(":")
    check = getattr(importlib.import_module(module), function)
    for finding in check(model) if name == "model" else check():
        print(json.dumps(asdict(finding)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
