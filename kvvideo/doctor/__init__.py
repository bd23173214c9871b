"""Check that everything kvvideo needs is there and works, and say how to mend what does not.

finding      what a check finds
checks       run them, each in a process of its own
machine      Python, memory, the GPU and torch
libraries    vLLM, the plug-in, and what comes with torch
decoders     a clip made on the spot, decoded by each decoder
places       folders that are written to
model        the files of a model
"""

from kvvideo.doctor.checks import examine
from kvvideo.doctor.finding import Finding

__all__ = ["Finding", "examine"]
