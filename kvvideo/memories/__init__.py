"""Memories outside of the engine: in host memory, as checkpoints, and in files."""
