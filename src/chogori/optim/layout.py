"""Where the matrices lie inside a parameter.

A parameter may be one matrix, a stack of them (experts), several on top of each other (fused projections, heads), or
a convolution kernel. `matrices` returns views, so that writing to them writes to the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from chogori.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MatrixLayout:
    """How a parameter of two or more dimensions is cut into matrices."""

    row_splits: tuple[int, ...] = ()
    """Heights of matrices that lie on top of each other; empty for one matrix of full height."""
    column_splits: tuple[int, ...] = ()
    """Widths of matrices that lie side by side; empty for one matrix of full width."""
    flatten: bool = False
    """All dimensions after the first are columns, as in a convolution kernel [out, in, …]."""

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """Views [matrices, n, m], each of equal shape within; together they cover `tensor` once.

        How many views there are, and their shapes, depend on the shape of `tensor` alone. With `flatten` or more than
        three dimensions it must be contiguous in memory.
        """
        if self.flatten:
            stack = tensor.view(1, tensor.shape[0], -1)
        elif tensor.ndim == 2:
            stack = tensor.unsqueeze(0)
        else:
            stack = tensor.view(-1, *tensor.shape[-2:]) if tensor.ndim > 3 else tensor
        if self.row_splits:
            return _split(stack, self.row_splits, dim=1)
        if self.column_splits:
            return _split(stack, self.column_splits, dim=2)
        return [stack]

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a shape that the splits do not cover. Raises ConfigError naming the parameter."""
        for what, splits, size in (
            ("row_splits", self.row_splits, shape[-2] if len(shape) > 1 else 0),
            ("column_splits", self.column_splits, shape[-1]),
        ):
            if splits and sum(splits) != size:
                raise ConfigError(
                    f"{what} {tuple(splits)} of parameter {name} add up to {sum(splits)}; expected {size}, as its "
                    f"shape is {tuple(shape)}"
                )

    def count(self, shape: Sequence[int]) -> int:
        """How many matrices a parameter of this shape holds."""
        outer = 1
        if not self.flatten:
            for size in shape[:-2]:
                outer *= size
        return outer * max(len(self.row_splits), 1) * max(len(self.column_splits), 1)


def _split(stack: Tensor, sizes: tuple[int, ...], *, dim: int) -> list[Tensor]:
    if len(set(sizes)) == 1 and stack.shape[0] == 1:
        # One view with more matrices, so that many heads are one entry of a stack.
        return [stack[0].unflatten(dim - 1, (len(sizes), sizes[0])).movedim(dim - 1, 0)]
    return list(stack.split_with_sizes(sizes, dim=dim))
