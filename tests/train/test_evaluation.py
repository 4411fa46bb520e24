"""Bits per byte, against the definition worked out token by token."""

import math

import pytest
import torch

from chogori.data import PreparedData, prepare
from chogori.errors import CorpusError
from chogori.model.transformer import K2Model
from chogori.train.evaluation import evaluate
from chogori.train.launch import train
from chogori.train.saved_run import evaluate_run


@pytest.fixture
def data(make_config) -> PreparedData:
    config = make_config()
    return prepare(config.data, config.data_folder)


@pytest.fixture
def model(make_config) -> K2Model:
    return K2Model(make_config().model, seed=0)


def test_bits_per_byte_is_its_definition(model, data):
    """Each document is read on its own, cut where the rows cut it; every token after [BOS] is predicted once."""
    length = 48
    nats, num_targets, position = 0.0, 0, 0
    for number in range(data.heldout.num_documents):
        tokens = torch.from_numpy(data.heldout.document(number).astype("int64"))
        start = 0
        while start < len(tokens) - 1:
            stop = min(start + length - position % length, len(tokens) - 1)
            with torch.no_grad():
                logits = model(tokens[None, start:stop])[0]
            nats -= float(logits.log_softmax(-1).gather(1, tokens[start + 1 : stop + 1, None]).sum())
            num_targets += stop - start
            position += stop - start
            start = stop
    found = evaluate(model, data, batch_size=3, sequence_length=length)
    assert found.whole
    assert found.num_targets == num_targets
    assert found.num_bytes == data.manifest.heldout.bytes
    assert found.nats_per_token == pytest.approx(nats / num_targets, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / data.manifest.heldout.bytes, rel=1e-5)


def test_batches_do_not_change_it(model, data):
    one, five = (evaluate(model, data, batch_size=size, sequence_length=64).bits_per_byte for size in (1, 5))
    assert one == pytest.approx(five, rel=1e-6)


def test_a_part_is_called_a_part(model, data):
    found = evaluate(model, data, batch_size=1, sequence_length=32, max_bytes=100)
    assert not found.whole
    assert 100 <= found.num_bytes < 100 + 32 * 8
    whole = evaluate(model, data, batch_size=1, sequence_length=32, max_bytes=10**9)
    assert whole.whole


def test_evaluating_changes_nothing_in_the_model(model, data):
    model.train()
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    evaluate(model, data, batch_size=2, sequence_length=32)
    assert model.training
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(tensor, before[name]), name
        assert tensor.grad is None


def test_no_heldout_text_is_an_error(model, data, monkeypatch):
    monkeypatch.setattr("chogori.train.evaluation.heldout_batches", lambda *arguments, **named: iter(()))
    with pytest.raises(CorpusError, match=r"the held-out text is empty; raise data.heldout_share"):
        evaluate(model, data, batch_size=2, sequence_length=32)


def test_a_saved_run_evaluates_to_what_it_reported(make_config):
    result = train(make_config(steps=3))
    assert result.evaluation is not None
    again = evaluate_run(result.folder.path)
    assert again.bits_per_byte == result.evaluation.bits_per_byte
