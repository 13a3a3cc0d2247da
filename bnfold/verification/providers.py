"""The names of providers, and their options. Apart from the runtime, so that checking an option loads nothing."""

from dataclasses import dataclass

from bnfold.errors import UsageError
from bnfold.text import printable

CPU, CUDA, REFERENCE = "CPUExecutionProvider", "CUDAExecutionProvider", "reference"
SHORT = {"cpu": CPU, "cuda": CUDA}


@dataclass(frozen=True, slots=True)
class Provider:
    """Where to run.

    Attributes:
        name: onnxruntime's full name, or "reference".
        options: names and values of the provider's options, as they were given.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()


def parse_provider(text: str) -> Provider:
    """A provider given as "cpu", "cuda", "reference", or in full, with options as in "cuda:device_id=0,name=value".

    Raises:
        UsageError: no such provider, or options that do not parse.
    """
    short, colon, listed = text.partition(":")
    name = SHORT.get(short.lower(), short)
    if name not in (CPU, CUDA, REFERENCE):
        raise UsageError(f"provider {printable(short)!r} is unknown; choose cpu, cuda or reference")
    pairs = [entry.partition("=") for entry in listed.split(",")] if colon else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise UsageError(f"provider {printable(text)!r}: expected options as in cuda:device_id=0,name=value")
    if name == REFERENCE and pairs:
        raise UsageError("the reference evaluator has no options")
    if any(key == "use_tf32" for key, _, _ in pairs):
        raise UsageError("provider option use_tf32: --tf32 (tf32=True) sets it, and judges by TF32's own rounding")
    return Provider(name, tuple((key, value) for key, _, value in pairs))


def full_name(provider: str) -> str:
    """The full name that onnxruntime has for a provider, without its options; "reference" is itself.

    Raises:
        UsageError: no such provider.
    """
    return parse_provider(provider).name
