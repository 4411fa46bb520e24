from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from chogori.model import K2Model
from chogori.model import loss as loss_module
from chogori.model.loss import IGNORE_INDEX, linear_cross_entropy

MakeModel = Callable[..., K2Model]


@pytest.mark.parametrize("chunk_numbers", [2**22, 101], ids=["one chunk", "chunks of one row"])
def test_it_equals_torch_cross_entropy_with_gradients(monkeypatch: pytest.MonkeyPatch, chunk_numbers: int) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_NUMBERS", chunk_numbers)
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(13, 8, generator=generator, requires_grad=True)
    weight_VD = torch.randn(101, 8, generator=generator, requires_grad=True)
    targets_N = torch.randint(0, 101, (13,), generator=generator)
    targets_N[[0, 5]] = IGNORE_INDEX
    expected = functional.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="sum") / 7.0
    expected_grads = torch.autograd.grad(2.5 * expected, (x_ND, weight_VD))
    ours = linear_cross_entropy(x_ND, weight_VD, targets_N, 7.0)
    torch.testing.assert_close(ours, expected)
    for grad, expected_grad in zip(torch.autograd.grad(2.5 * ours, (x_ND, weight_VD)), expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_ignored_rows_have_no_gradient_and_no_targets_no_loss() -> None:
    x_ND = torch.randn(3, 4, requires_grad=True)
    loss = linear_cross_entropy(x_ND, torch.randn(5, 4), torch.full((3,), IGNORE_INDEX), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert x_ND.grad is not None
    assert int(x_ND.grad.count_nonzero()) == 0


def test_the_models_loss_is_the_mean_over_counted_targets(make_model: MakeModel, tokens_BT: Tensor) -> None:
    model = make_model()
    targets_BT = tokens_BT.roll(-1, 1)
    targets_BT[:, ::3] = IGNORE_INDEX
    logits_BTV = model(tokens_BT)
    expected = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    torch.testing.assert_close(model.loss(tokens_BT, targets_BT), expected)


def test_parts_of_a_step_add_up_to_the_whole(make_model: MakeModel, tokens_BT: Tensor) -> None:
    # Gradient accumulation: each part divides by the targets of the whole step.
    model = make_model().train()
    targets_BT = tokens_BT.roll(-1, 1)
    targets_BT[0, :9] = IGNORE_INDEX
    whole = model.loss(tokens_BT, targets_BT)
    num_targets = float((targets_BT != IGNORE_INDEX).sum())
    parts = [model.loss(tokens_BT[row, None], targets_BT[row, None], normaliser=num_targets) for row in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
