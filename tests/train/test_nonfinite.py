"""The first bad tensor is named, not one that it spoiled."""

import torch
from torch import nn

from chogori.train.nonfinite import first_bad_activation, first_bad_gradient, first_bad_parameter


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1))


def parameter(model: nn.Sequential, name: str) -> nn.Parameter:
    return dict(model.named_parameters())[name]


def test_finite_networks_have_nothing_to_name():
    model = network()
    model(torch.ones(1, 4)).sum().backward()
    assert first_bad_parameter(model) is None
    assert first_bad_gradient(model) is None
    assert first_bad_activation(model, lambda: model(torch.ones(1, 4))) is None


def test_a_bad_weight_is_named_with_its_count():
    model = network()
    with torch.no_grad():
        parameter(model, "2.weight")[0, :3] = float("nan")
        parameter(model, "2.weight")[1, 0] = float("inf")
    assert first_bad_parameter(model) == "the weight 2.weight holds 3 NaN and 1 infinite of 16 values"


def test_a_bad_gradient_is_named():
    model = network()
    model(torch.ones(1, 4)).sum().backward()
    gradient = parameter(model, "3.weight").grad
    assert gradient is not None
    gradient[0, 1] = float("inf")
    assert first_bad_gradient(model) == "the gradient of 3.weight holds 0 NaN and 1 infinite of 4 values"


def test_the_module_that_made_it_is_named_not_those_after_it():
    model = network()
    with torch.no_grad():
        parameter(model, "2.weight").fill_(3e38)
        parameter(model, "2.bias").fill_(3e38)
        parameter(model, "0.bias").fill_(10.0)
    found = first_bad_activation(model, lambda: model(torch.ones(1, 4)))
    assert found == "the output of 2 holds 0 NaN and 4 infinite of 4 values"


def test_hooks_do_not_stay():
    model = network()
    first_bad_activation(model, lambda: model(torch.ones(1, 4)))
    assert not any(module._forward_hooks for module in model.modules())
