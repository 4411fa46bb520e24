"""The Slurm job: its directives, and a run of it with stand-ins for Slurm's own programs."""

import subprocess
from pathlib import Path

import pytest

from chogori.deploy.formats.files import write_files
from chogori.deploy.formats.slurm import slurm_files
from tests.deploy.deployments import typed
from tests.deploy.formats.test_shell import EVERY_KIND, LARGE, shellcheck
from tests.deploy.recorder import Recorder

# Runs what it is given once for each task, with the variables that Slurm sets, and goes on until it is stopped.
SRUN = """#!/bin/bash
for word in "$@"; do
  case $word in
    --nodes=*) nodes=${word#*=} ;;
    --ntasks-per-node=*) tasks=${word#*=} ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
for ((task = 0; task < nodes * tasks; task++)); do
  SLURM_PROCID=$task "$@"
done
exec sleep 60
"""


# Ends, and the job with it, when as many processes have been started as are expected.
CHOGORI = """#!/bin/bash
gateway-started "$@"
until (($(wc -l < "{record}") >= {expected})); do sleep 0.05; done
"""


@pytest.fixture
def programs(tmp_path: Path) -> Recorder:
    folder = tmp_path / "bin"
    folder.mkdir()
    recorder = Recorder(folder=folder)
    recorder.stand_in("vllm", "python", "trtllm-llmapi-launch", "curl")
    recorder.write("scontrol", "#!/bin/sh\nprintf 'n%s\\n' 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n")
    recorder.write("srun", SRUN)
    recorder.stand_in("gateway-started")
    return recorder


@pytest.mark.parametrize("arguments", EVERY_KIND, ids=lambda arguments: "-".join(arguments[2:8:2]))
def test_the_job_is_valid(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_files(slurm_files(typed(*arguments)), tmp_path)
    job = tmp_path / "deploy.sbatch"
    subprocess.run(["bash", "-n", job], check=True)
    shellcheck(job)
    lines = job.read_text(encoding="utf-8").splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    # sbatch reads directives up to the first command, so all must stand before it.
    assert lines[1 : 1 + len(directives)] == directives
    num_gpus = int(arguments[2])
    assert f"#SBATCH --nodes={-(-num_gpus // 8)}" in directives
    assert f"#SBATCH --gpus-per-node={min(num_gpus, 8)}" in directives


def run(arguments: tuple[str, ...], folder: Path, programs: Recorder, *, expected: int) -> None:
    """Until `expected` processes have been recorded: curl's, the gateway's and those of the engine."""
    programs.write("chogori", CHOGORI.format(record=programs.record, expected=expected))
    write_files(slurm_files(typed(*arguments)), folder)
    environment = {"SLURM_JOB_NODELIST": "n[0-15]", "TMPDIR": str(folder)}
    result = programs.run(["bash", str(folder / "deploy.sbatch")], environment)
    assert result.returncode == 0, result.stderr


def test_every_node_and_the_gateway_are_started(tmp_path: Path, programs: Recorder) -> None:
    run(("kimi-k2", "--gpus", "16", "--gpu", "h200", "--concurrency", "64"), tmp_path, programs, expected=4)
    engines = [call for call in programs.calls if call.words[0] == "vllm"]
    assert [("--headless" in call.words) for call in engines] == [False, True]
    assert engines[1].words[engines[1].words.index("--data-parallel-start-rank") + 1] == "8"
    assert all(call.words[call.words.index("--data-parallel-address") + 1] == "n0" for call in engines)
    (gateway,) = [call.words for call in programs.calls if call.words[0] == "gateway-started"]
    assert gateway[1:4] == ["serve", "--model", "http://127.0.0.1:8000/v1"]


def test_prefill_and_decode_are_told_apart(tmp_path: Path, programs: Recorder) -> None:
    # The router's end would be the job's.
    programs.write("python", '#!/bin/bash\nstarted "$@"\n[[ $* != *router* ]] || exec sleep 60\n')
    programs.stand_in("started")
    run(LARGE, tmp_path, programs, expected=19)
    modes = [
        (
            call.words[call.words.index("--disaggregation-mode") + 1],
            call.words[call.words.index("--dist-init-addr") + 1],
        )
        for call in programs.calls
        if "--disaggregation-mode" in call.words
    ]
    assert sorted(modes) == [("decode", "n4:5757")] * 12 + [("prefill", "n0:5757")] * 4
    routers = [call for call in programs.calls if "--pd-disaggregation" in call.words]
    assert len(routers) == 1


def test_mpi_ranks_are_started_by_slurm(tmp_path: Path, programs: Recorder) -> None:
    run(("kimi-k2", "--gpus", "16", "--gpu", "h200", "--engine", "tensorrt-llm"), tmp_path, programs, expected=18)
    ranks = [call for call in programs.calls if call.words[0] == "trtllm-llmapi-launch"]
    assert len(ranks) == 16
    files = {call.words[call.words.index("--extra_llm_api_options") + 1] for call in ranks}
    assert len(files) == 16, "no rank overwrites what another is reading"
    job = (tmp_path / "deploy.sbatch").read_text(encoding="utf-8")
    assert "srun --nodes=2 --ntasks-per-node=8 --kill-on-bad-exit=1 --mpi=pmix" in job
