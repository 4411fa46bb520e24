"""Machines as told and as nvidia-smi tells."""

import os
from pathlib import Path

import pytest

from chogori.deploy.gpus import GIB, GPUS, find_gpu
from chogori.deploy.machine import Machine, detect_machine, read_detected
from chogori.errors import ConfigError, DeploymentError
from tests.deploy.recorder import Recorder


def test_detected_products_are_those_of_the_table() -> None:
    for product, memory, capability, name in (
        ("NVIDIA H200", "143771", "9.0", "h200"),
        ("NVIDIA H20", "97871", "9.0", "h20"),
        ("NVIDIA H100 80GB HBM3", "81559", "9.0", "h100"),
        ("NVIDIA A100-SXM4-80GB", "81920", "8.0", "a100-80"),
        ("NVIDIA GeForce RTX 4090", "24564", "8.9", "rtx4090"),
    ):
        found = read_detected(f"{product}, {memory}, {capability}\n" * 8, 2048 * GIB)
        assert (found.gpu, found.num_gpus, found.gpus_per_node) == (find_gpu(name), 8, 8)
        assert found.gpu.memory_mib == int(memory)
        assert found.cpu_memory_bytes == 2048 * GIB


def test_an_unknown_product_is_taken_as_it_says() -> None:
    gpu = read_detected("NVIDIA H200 NVL Ultra, 150000, 9.0", GIB).gpu
    assert gpu == GPUS["h200"], "a longer name of a known product"
    gpu = read_detected("Quadro RTX 8000, 46080, 7.5", GIB).gpu
    assert (gpu.name, gpu.memory_mib, gpu.fp8) == ("quadro-rtx-8000", 46080, False)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("", "nvidia-smi lists no GPU"),
        ("NVIDIA H100 80GB HBM3, 81559, 9.0\nNVIDIA H200, 143771, 9.0", "GPUs of several kinds"),
        ("NVIDIA H200", "expected name, memory and compute capability"),
        ("Unheard of, [N/A], 9.0", "expected memory in MiB"),
    ],
)
def test_what_nvidia_smi_should_not_say(listing: str, message: str) -> None:
    with pytest.raises(DeploymentError, match=message):
        read_detected(listing, GIB)


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Recorder(folder=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/usr/bin:/bin")
    programs.write("nvidia-smi", "#!/bin/sh\necho 'NVIDIA H200, 143771, 9.0'\necho 'NVIDIA H200, 143771, 9.0'\n")
    assert detect_machine().words == "2 × h200 on one node"
    programs.write("nvidia-smi", "#!/bin/sh\necho 'Failed to initialize NVML' >&2\nexit 9\n")
    with pytest.raises(DeploymentError, match="failed: Failed to initialize NVML; name the GPUs"):
        detect_machine()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(DeploymentError, match="there is no nvidia-smi here; name the GPUs instead"):
        detect_machine()


def test_a_misspelt_gpu_and_uneven_nodes() -> None:
    with pytest.raises(ConfigError, match=r"gpu is 'h2000'; expected one of a100-40, .*; did you mean 'h200'\?"):
        find_gpu("h2000")
    with pytest.raises(ConfigError, match="gpus is 12 with 8 on each node; expected a multiple of 8"):
        Machine(gpu=find_gpu("H200"), num_gpus=12, gpus_per_node=8)
