"""Text from a run: the same for the same seed, in pieces that are whole characters."""

import os
import shutil
import signal

import pytest
import torch

from chogori.chat.tokenizer import Tokenizer
from chogori.errors import CheckpointError, ConfigError, RunError
from chogori.model.transformer import K2Model
from chogori.train import sampling
from chogori.train.events import StepFinished
from chogori.train.launch import train
from chogori.train.run_folder import RunFolder
from chogori.train.sampling import Sampler
from chogori.train.saved_run import open_run


@pytest.fixture
def run(make_config) -> RunFolder:
    """A run that was interrupted after its fourth step."""

    def interrupt(event):
        if isinstance(event, StepFinished) and event.metrics.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(make_config(), listeners=[interrupt]).folder


@pytest.fixture
def sampler(make_config, run) -> Sampler:
    return Sampler.open(run.path)


def test_an_unfinished_run_speaks_through_its_newest_checkpoint(run):
    opened = open_run(run.path)
    assert opened.source.name == "step-0000004"
    assert opened.remarks == []
    (opened.source / "model.safetensors").write_bytes(b"")
    opened = open_run(run.path)
    assert opened.source.name == "step-0000003"
    assert "step-0000004 is damaged" in opened.remarks[0]
    (opened.source / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint of"):
        open_run(run.path)


def test_a_run_without_weights_is_refused(run):
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match="has neither a finished model nor a checkpoint yet; train it for at least 3"):
        Sampler.open(run.path)


def test_a_seed_is_a_text(sampler):
    texts = [sampler.sample("The ", max_new_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_text_is_the_likeliest_token_each_time(sampler):
    found = sampler.sample("The ", max_new_tokens=5, temperature=0.0)
    ids = [sampler.tokenizer.bos_id, *sampler.tokenizer.encode("The ")]
    start = len(ids)
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(sampler.model(torch.tensor([ids]))[0, -1].argmax()))
    assert found == sampler.tokenizer.decode(ids[start:])


def test_a_prompt_too_long_is_refused(sampler):
    with pytest.raises(ConfigError, match=r"the prompt has \d+ tokens, and the model reads at most 512"):
        sampler.sample("mountain " * 600)


def test_text_ends_where_the_context_is_full(sampler):
    prompt = "a" * 500
    num_prompt = 1 + len(sampler.tokenizer.encode(prompt))
    text = sampler.sample(prompt, max_new_tokens=10_000, temperature=0.0)
    assert len(sampler.tokenizer.encode(text)) <= 512 - num_prompt


def scripted(monkeypatch, ids):
    def script(model, tokens_BT, **named):
        return (torch.tensor([token]) for token in ids)

    monkeypatch.setattr(sampling, "generate", script)


def test_pieces_never_split_a_character(make_config, monkeypatch):
    tokenizer = Tokenizer.train(["plain"], vocab_size=300)
    sampler = Sampler(K2Model(make_config().model, seed=0), tokenizer)
    text = "山 is 🏔!"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())  # one token a byte
    scripted(monkeypatch, ids)
    pieces = list(sampler.stream("x"))
    assert pieces == list(text)
    scripted(monkeypatch, [*tokenizer.encode("a"), ids[0]])  # a text cut off inside a character
    assert list(sampler.stream("x")) == ["a"]


@pytest.mark.parametrize("end", ["end of text", "unused row"])
def test_ends_are_not_part_of_the_text(make_config, monkeypatch, end):
    tokenizer = Tokenizer.train(["plain"], vocab_size=300)
    sampler = Sampler(K2Model(make_config().model, seed=0), tokenizer)
    last = tokenizer.eos_id if end == "end of text" else 310
    scripted(monkeypatch, [*tokenizer.encode("ab"), last, *tokenizer.encode("cd")])
    assert sampler.sample("x") == "ab"
