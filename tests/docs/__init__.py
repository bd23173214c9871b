"""The README, the pages beside it, and what they say."""
