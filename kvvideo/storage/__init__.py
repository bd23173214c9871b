"""Write to the disk what must outlive a process: memories, checkpoints, the workspace of a run."""
