"""Peak rates of common GPUs: dense floating point operations a second, from NVIDIA's data sheets.

bf16: tensor cores with fp32 sums, without sparsity.  fp32: without tensor cores (torch's default for matrix products).
"""

from typing import Literal

# by the beginning of the driver's name for it; the longest match counts
_PEAK: dict[str, dict[str, float]] = {
    "Tesla V100": {"fp32": 15.7e12},
    "NVIDIA A100": {"bf16": 312e12, "fp32": 19.5e12},
    "NVIDIA A10": {"bf16": 125e12, "fp32": 31.2e12},
    "NVIDIA A30": {"bf16": 165e12, "fp32": 10.3e12},
    "NVIDIA A40": {"bf16": 149.7e12, "fp32": 37.4e12},
    "NVIDIA L4": {"bf16": 121e12, "fp32": 30.3e12},
    "NVIDIA L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "NVIDIA H100": {"bf16": 989e12, "fp32": 66.9e12},  # SXM
    "NVIDIA H100 PCIe": {"bf16": 756e12, "fp32": 51.2e12},
    "NVIDIA H100 NVL": {"bf16": 835e12, "fp32": 60e12},
    "NVIDIA H200": {"bf16": 989e12, "fp32": 66.9e12},
    "NVIDIA GH200": {"bf16": 989e12, "fp32": 66.9e12},
    "NVIDIA B200": {"bf16": 2250e12, "fp32": 80e12},
}


def peak_flops(device: str, precision: Literal["bf16", "fp32"]) -> float | None:
    """Peak FLOP/s of a device by its name; None if unknown."""
    found = [name for name in _PEAK if device == name or device.startswith((f"{name} ", f"{name}-"))]
    return _PEAK[max(found, key=len)].get(precision) if found else None
