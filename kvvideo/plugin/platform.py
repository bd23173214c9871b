"""The platform that vLLM runs on."""


def is_cpu() -> bool:
    """Return True if vLLM runs on the CPU. The first call imports vLLM."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
