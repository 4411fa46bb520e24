"""What the machine can do: its device, its number types, and the matrix peak it really reaches."""

from __future__ import annotations

import time

import torch

from chogori.errors import ConfigError
from chogori.train.config import TrainConfig


def resolve_device(asked: str) -> torch.device:
    """The device named by `TrainConfig.device`. Raises ConfigError for a CUDA device that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(asked)
    if device.type == "cuda":
        num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= num_devices:
            raise ConfigError(f'device is "{asked}", but torch sees {num_devices} CUDA devices; use device="cpu"')
    return device


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run on their own instructions rather than by conversion."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def resolve_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The number type of the matrix products."""
    if config.precision == "float32":
        return torch.float32
    if config.precision == "bfloat16" or has_bfloat16_units(device):
        return torch.bfloat16
    return torch.float32


def describe_device(device: torch.device) -> str:
    """In words, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def measure_matrix_peak(dtype: torch.dtype, device: torch.device, *, size: int = 2048, budget_s: float = 0.5) -> float:
    """FLOP/s of the best of several size³ products in `dtype`, the most this machine gives to a matrix product.

    Takes about `budget_s` seconds (one product on a very slow machine). On CUDA the size is doubled twice: 2048³ does
    not fill a large device.
    """
    cuda = device.type == "cuda"
    size = 4 * size if cuda else size
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = torch.full((size, size), 0.25, dtype=dtype, device=device)
    out = torch.empty_like(left)
    best_s = float("inf")
    end = time.perf_counter() + budget_s
    runs = 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if cuda:
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
        runs += 1
        if best_s > budget_s:
            break
    return 2 * size**3 / best_s
