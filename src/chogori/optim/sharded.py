"""Parameters that FSDP2 spread over ranks (DTensor): the whole tensor where a whole matrix is needed, the own part
where a weight is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, distribute_tensor
else:  # A build of torch without distributed has no sharded tensors either.
    DTensor = None
    distribute_tensor = None


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is spread over ranks."""
    return DTensor is not None and isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor` on this rank. A collective when it is sharded: every rank must call it in the same order."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore


def own_part(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lies on this rank, as a view."""
    return cast("DTensor", tensor).to_local() if is_sharded(tensor) else tensor  # pyright: ignore


def own_part_of(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full`, which every rank holds, that belongs to this rank as `like` is spread. No communication."""
    if not is_sharded(like):
        return full
    assert distribute_tensor is not None
    spread = cast("DTensor", like)  # pyright: ignore
    placed = distribute_tensor(full, spread.device_mesh, cast(Sequence[object], spread.placements), src_data_rank=None)  # pyright: ignore
    return cast(Tensor, placed.to_local())  # pyright: ignore
