"""A run is a folder: what it refuses to be, what may change between launches, and who may write to it."""

import json
import subprocess
import sys
from typing import cast

import pytest

from chogori.errors import RunError
from chogori.train.run_folder import RunFolder, describe_environment


def started(config) -> RunFolder:
    folder = RunFolder(config.out)
    with folder.lock():
        folder.start(config)
    return folder


def test_the_config_comes_back_equal(make_config):
    config = make_config()
    started(config)
    assert RunFolder.open(config.out).load_config() == config


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="nowhere does not exist; expected the folder of a run, such as runs/nano"):
        RunFolder.open(tmp_path / "nowhere")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not the folder of a training run: it has no config\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a config"),
        ('{"architectures": ["DeepseekV3ForCausalLM"]}', "unknown field 'architectures'"),
        ("{}", "missing"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=f"is not the config of a training run of this version .*{words}"):
        RunFolder.open(tmp_path).load_config()


def test_an_occupied_folder_is_refused(make_config):
    config = make_config()
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"holds something else \(thesis.tex\); choose an empty or new --out"):
        started(config)


def test_a_file_in_the_way_is_refused(make_config):
    config = make_config()
    config.out.write_text("")
    with pytest.raises(RunError, match="is a file; expected a folder"):
        started(config)


def test_a_changed_config_is_refused_and_its_fields_named(make_config):
    config = make_config()
    started(config)
    changed = config.replace(batch_size=4, model=config.model.replace(num_experts_per_token=1))
    with pytest.raises(RunError) as refusal:
        started(changed)
    assert "model.num_experts_per_token was 2 and is now 1; batch_size was 2 and is now 4" in str(refusal.value)
    assert "another --out" in str(refusal.value)
    assert RunFolder(config.out).load_config() == config


def test_fields_outside_the_arithmetic_may_change(make_config):
    config = make_config()
    folder = started(config)
    changed = config.replace(keep_checkpoints=5, tensorboard=True)
    with folder.lock():
        remarks = folder.start(changed)
    assert sorted(remarks) == ["keep_checkpoints was 2 and is now 5", "tensorboard was False and is now True"]
    assert folder.load_config() == changed


def test_a_second_process_may_not_train_into_a_run(make_config):
    config = make_config()
    folder = RunFolder(config.out)
    code = (
        "import sys; from pathlib import Path; from chogori.train.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): pass"
    )
    command = [sys.executable, "-c", code, str(config.out)]
    with folder.lock():
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is being trained by process" in refused.stderr
    assert "choose another --out" in refused.stderr
    # The lock ends with its holder.
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_launches_are_listed(make_config):
    folder = started(make_config())
    folder.add_environment({**describe_environment(), "start_step": 0})
    folder.add_environment({**describe_environment(), "start_step": 3})
    first, second = folder.environments()
    assert (first["start_step"], second["start_step"]) == (0, 3)
    assert set(cast("dict[str, str]", first["versions"])) >= {"python", "torch", "numpy", "chogori"}
    json.dumps(first)


def test_an_installed_package_claims_no_revision(tmp_path, monkeypatch):
    # The revision is that of the repository which tracks this file, not of whatever repository lies around it.
    from chogori.train import run_folder

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    inside = tmp_path / "site-packages" / "run_folder.py"
    inside.parent.mkdir()
    inside.write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(inside))
    assert run_folder.describe_environment()["revision"] is None
