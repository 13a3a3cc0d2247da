"""The names of providers. Apart from the runtime, so that checking an option loads nothing."""

from bnfold.errors import UsageError

CPU, CUDA, REFERENCE = "CPUExecutionProvider", "CUDAExecutionProvider", "reference"
SHORT = {"cpu": CPU, "cuda": CUDA}


def full_name(provider: str) -> str:
    """The full name that onnxruntime has for a provider given as "cpu", "cuda", or in full; "reference" is itself.

    Raises:
        UsageError: no such provider.
    """
    name = SHORT.get(provider.lower(), provider)
    if name not in (CPU, CUDA, REFERENCE):
        raise UsageError(f"provider {provider!r} is unknown; choose cpu, cuda or reference")
    return name
