import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import ConfigError
from chogori.optim.layout import MatrixLayout


@given(
    outer=st.lists(st.integers(1, 3), max_size=2),
    splits=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    other=st.integers(1, 5),
    rows=st.booleans(),
)
def test_matrices_are_views_that_cover_the_parameter_once(
    outer: list[int], splits: list[int], other: int, rows: bool
) -> None:
    shape = (*outer, sum(splits), other) if rows else (*outer, other, sum(splits))
    layout = MatrixLayout(row_splits=tuple(splits)) if rows else MatrixLayout(column_splits=tuple(splits))
    tensor = torch.zeros(shape)
    matrices = layout.matrices(tensor)
    for matrix in matrices:
        matrix += 1
    assert torch.equal(tensor, torch.ones(shape))
    assert sum(matrix.shape[0] for matrix in matrices) == layout.count(shape)
    sizes = [matrix.shape[-2 if rows else -1] for matrix in matrices for _ in range(matrix.shape[0])]
    assert sorted(sizes) == sorted(splits * (layout.count(shape) // len(splits)))


def test_rows_and_columns_keep_their_places() -> None:
    tensor = torch.arange(24).view(4, 6)
    top, bottom = MatrixLayout(row_splits=(2, 2)).matrices(tensor)[0]
    assert torch.equal(top, tensor[:2])
    assert torch.equal(bottom, tensor[2:])
    left, middle, right = MatrixLayout(column_splits=(2, 2, 2)).matrices(tensor)[0]
    assert torch.equal(torch.cat((left, middle, right), dim=1), tensor)
    gate, up = MatrixLayout(row_splits=(2, 2)).matrices(torch.arange(48).view(2, 4, 6))
    assert torch.equal(gate[1], torch.arange(24, 36).view(2, 6))
    assert torch.equal(up[0], torch.arange(12, 24).view(2, 6))


def test_a_convolution_kernel_is_one_matrix() -> None:
    layout = MatrixLayout(flatten=True)
    assert [tuple(matrix.shape) for matrix in layout.matrices(torch.zeros(8, 3, 5, 5))] == [(1, 8, 75)]
    assert layout.count((8, 3, 5, 5)) == 1


def test_splits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"row_splits \(3, 4\) of parameter qkv add up to 7; expected 9.*\(9, 5\)"):
        MatrixLayout(row_splits=(3, 4)).check("qkv", (9, 5))
    with pytest.raises(ConfigError, match=r"column_splits \(2, 2\) of parameter out add up to 4; expected 5"):
        MatrixLayout(column_splits=(2, 2)).check("out", (9, 5))
    MatrixLayout(row_splits=(4, 5)).check("qkv", (9, 5))
