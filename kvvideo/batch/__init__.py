"""Many videos, many questions: job files answered by one engine that streams several videos at once.

``tasks`` joins what one ingest can answer, ``streams`` runs tasks side by side, ``results`` has what came of them on
the disk, and ``run`` ties them together.
"""
