"""Adapt each attention backend of vLLM: name the classes to extend, read and write its layout of keys and values."""
