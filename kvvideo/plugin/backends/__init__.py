"""One thin adapter per attention backend of vLLM: which classes to extend, how it lays out K and V."""
