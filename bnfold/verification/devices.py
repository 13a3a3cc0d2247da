"""The name of the device that a provider ran on, for the report."""

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

from bnfold.verification.providers import CUDA

_NAME_LENGTH = 256


def device_name(provider: str, device: int = 0) -> str:
    """The processor's name, or that of the CUDA device with this number; "" where it cannot be found out."""
    return _cuda_name(device) if provider == CUDA else _processor_name()


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda_name(device: int) -> str:
    """By the driver's own library, which counts devices as onnxruntime does (CUDA_VISIBLE_DEVICES).

    Source: CUDA Driver API, cuInit, cuDeviceGet, cuDeviceGetName.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_LENGTH)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return ""
    failed = driver.cuDeviceGetName(name, _NAME_LENGTH, handle)
    return "" if failed else name.value.decode(errors="replace")
