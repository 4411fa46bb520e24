"""Devices and number types as asked, or a refusal."""

import pytest
import torch

from chogori.errors import ConfigError
from chogori.train import machine
from chogori.train.machine import measure_matrix_peak, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r'device is "cuda:99", but torch sees \d+ CUDA devices; use device="cpu"'):
        resolve_device("cuda:99")


def test_cpu_is_cpu():
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(("units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_follows_the_processor(make_config, monkeypatch, units, expected):
    monkeypatch.setattr(machine, "has_bfloat16_units", lambda device: units)
    assert resolve_precision(make_config(), CPU) == expected
    assert resolve_precision(make_config(precision="float32"), CPU) == torch.float32
    assert resolve_precision(make_config(precision="bfloat16"), CPU) == torch.bfloat16


def test_the_peak_is_that_of_real_products():
    # A product of size n takes 2 n³ operations; any machine does more than 10 million a second.
    assert measure_matrix_peak(torch.float32, CPU, size=64, budget_s=0.01) > 1e7
