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

        A shape that is not contiguous in memory cannot always be viewed; the parameters of torch.nn are.
        """
        if self.flatten:
            stack = tensor.view(1, tensor.shape[0], -1)
        else:
            stack = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.flatten(0, -3)
        if self.row_splits:
            return _split(stack, self.row_splits, dim=-2)
        if self.column_splits:
            return _split(stack, self.column_splits, dim=-1)
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
    if len(set(sizes)) > 1 or not stack.is_contiguous():
        return list(stack.split(sizes, dim=dim))
    # Equal parts are one view with more matrices, so that they are stacked without a copy.
    parts = stack.unflatten(dim, (len(sizes), sizes[0]))
    if dim == -1:
        parts = parts.movedim(-2, 1)
        return list(parts.unbind(1)) if stack.shape[0] > 1 else [parts.flatten(0, 1)]
    return [parts.flatten(0, 1)]
