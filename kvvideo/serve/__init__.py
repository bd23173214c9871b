"""Serve a bounded cache by vLLM's OpenAI server."""
