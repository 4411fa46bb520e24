"""The running engine: whatever happens to one answer, the others are what they would have been alone."""

import queue
import random
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from chogori.chat.completer import Sampling
from chogori.engine.answer import Ended, Output, Produced, PromptRead
from chogori.engine.constraints import FreeText
from chogori.engine.engine import Engine
from chogori.engine.forward import PagedLatents, ServedModel
from chogori.engine.step_batch import StepBatch
from chogori.engine.vocabulary import Mask, Vocabulary
from chogori.errors import BackendError, ContextLengthError, NonFiniteError, OverloadedError
from chogori.model import K2Model
from tests.engine.conftest import TINY
from tests.engine.running import PATIENCE_S, Asked, ask, scatter

MakeEngine = Callable[..., Engine]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [random.Random(seed).randrange(400) for _ in range(length)]


def wait_until_idle(engine: Engine, vocabulary: Vocabulary) -> None:
    """Until the step after all that was asked has begun: an answer of its own goes through."""
    assert ask(engine, vocabulary, [1], max_tokens=1).finish().reason == "length"


def what_came(asked: Asked) -> list[tuple[int, float]]:
    """Tokens and the bits of their log-probabilities."""
    return [
        (output.token, output.likelihood.logprob)
        for output in asked.received
        if isinstance(output, Produced) and output.likelihood
    ]


class SteppedModel:
    """A model whose steps wait for a permit, and can be made to fail."""

    def __init__(self, model: ServedModel, *, stepped: bool = False) -> None:
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        self._model = model
        self._permits: queue.Queue[None] | None = queue.Queue() if stepped else None
        self.failures: list[Exception] = []
        self.entered = threading.Semaphore(0)

    def permit(self, steps: int = 1) -> None:
        """Let so many steps pass."""
        assert self._permits is not None
        for _ in range(steps):
            self._permits.put(None)

    def step(self, batch: StepBatch, latents: PagedLatents) -> torch.Tensor:
        self.entered.release()
        if self._permits is not None:
            self._permits.get(timeout=PATIENCE_S)
        if self.failures:
            raise self.failures.pop()
        return self._model.step(batch, latents)


@pytest.fixture(scope="module")
def rounded(served: ServedModel) -> ServedModel:
    """The tiny model in bfloat16."""
    model = scatter(K2Model(TINY, seed=0)).to(torch.bfloat16)
    model.compute_dtype = torch.bfloat16
    return ServedModel(model)


# ---- one answer -------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_itself_would_say(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    """Greedy, against the model's own forward over the whole text at each token."""
    model = scatter(K2Model(TINY, seed=0))
    prompt = prompt_of(50)
    asked = ask(make_engine(), vocabulary, prompt, temperature=0, max_tokens=20, logprobs=True)
    ended = asked.finish()
    assert (ended.reason, ended.num_tokens) == ("length", 20)
    barred = ~vocabulary.text_mask
    barred[list(vocabulary.end_ids)] = True
    text = list(prompt)
    for token, logprob in what_came(asked):
        with torch.no_grad():
            logits = model(torch.tensor([text]))[0, -1]
        assert token == logits.masked_fill(torch.from_numpy(barred), float("-inf")).argmax()
        # Logits near 1 of three layers, in another order of sums: 2^-24 times their widths stays under 1e-4.
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
        text.append(token)


def test_an_end_token_ends_and_is_counted_but_not_handed_out(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    asked = ask(
        make_engine(), vocabulary, [1, 2], constraint=FreeText(vocabulary), logit_bias={vocabulary.im_end: 100.0}
    )
    assert asked.finish() == Ended(reason="stop", num_tokens=1)
    assert asked.tokens == []


@pytest.mark.parametrize("length", [0, TINY.max_position_embeddings, TINY.max_position_embeddings + 1])
def test_a_prompt_without_room_for_an_answer_is_refused(
    make_engine: MakeEngine, vocabulary: Vocabulary, length: int
) -> None:
    engine = make_engine()
    with pytest.raises(ContextLengthError, match=rf"has {length} tokens; expected at least 1, and at most 511"):
        ask(engine, vocabulary, [1] * length)
    assert ask(engine, vocabulary, [1] * 511, max_tokens=10).finish().num_tokens == 1


def test_a_prompt_larger_than_the_cache_is_refused(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    engine = make_engine(cache_tokens=64)
    with pytest.raises(ContextLengthError, match=r"has 65 tokens, and the cache holds 64 \(engine.cache_tokens\)"):
        ask(engine, vocabulary, [1] * 65)
    assert ask(engine, vocabulary, [1] * 64, max_tokens=10).finish().num_tokens == 1
    assert ask(engine, vocabulary, [1] * 60, max_tokens=10).finish().num_tokens == 5


def test_an_answer_that_names_no_limit_has_the_default_one(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    assert ask(make_engine(default_max_tokens=7), vocabulary, [1], max_tokens=None).finish().num_tokens == 7


# ---- scored prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 32, 33, 100])
def test_a_scored_prompt_is_as_likely_as_the_model_itself_says(
    make_engine: MakeEngine, vocabulary: Vocabulary, length: int
) -> None:
    """Also where its beginning is in the cache, of which nothing is reused, and whatever else is read and produced."""
    engine = make_engine()
    prompt = prompt_of(length)
    ask(engine, vocabulary, prompt, seed=None).finish()
    others = [ask(engine, vocabulary, prompt_of(40, seed), max_tokens=30) for seed in range(1, 4)]
    asked = ask(engine, vocabulary, prompt, max_tokens=0, logprobs=True, top_logprobs=3, scores_prompt=True)
    assert asked.finish() == Ended(reason="length", num_tokens=0)
    assert [other.finish().num_tokens for other in others] == [30] * 3
    (read,) = (output for output in asked.received if isinstance(output, PromptRead))
    assert read.cached_tokens == 0
    with torch.no_grad():
        logprobs_TV = scatter(K2Model(TINY, seed=0))(torch.tensor([prompt]))[0].log_softmax(-1)
    expected = [float(logprobs_TV[place, token]) for place, token in enumerate(prompt[1:])]
    # In another order of sums, as above.
    assert [likelihood.logprob for likelihood in read.likelihoods] == pytest.approx(expected, abs=1e-4)
    tops = logprobs_TV[:-1].topk(3)
    assert [[token for token, _ in likelihood.top] for likelihood in read.likelihoods] == tops.indices.tolist()
    assert [logprob for likelihood in read.likelihoods for _, logprob in likelihood.top] == pytest.approx(
        tops.values.flatten().tolist(), abs=1e-4
    )
    wait_until_idle(engine, vocabulary)
    assert engine.state().cache_tokens_used == 0


def test_scoring_the_prompt_changes_nothing_of_the_answer(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    engine = make_engine()
    scored, plain = (
        ask(engine, vocabulary, prompt_of(70), logprobs=True, scores_prompt=scores) for scores in (True, False)
    )
    assert plain.finish() == scored.finish()
    assert what_came(plain) == what_came(scored)
    # What was read for it is found by others.
    again = ask(engine, vocabulary, prompt_of(70))
    again.finish()
    assert again.cached_tokens == 64


def test_a_prompt_that_fills_the_context_or_the_cache_can_be_scored(
    make_engine: MakeEngine, vocabulary: Vocabulary
) -> None:
    length = TINY.max_position_embeddings
    asked = ask(make_engine(), vocabulary, [1] * length, max_tokens=0, scores_prompt=True)
    assert asked.finish() == Ended(reason="length", num_tokens=0)
    small = make_engine(cache_tokens=64)
    assert ask(small, vocabulary, [1] * 64, max_tokens=0, scores_prompt=True).finish().reason == "length"
    with pytest.raises(ContextLengthError, match=r"has 65 tokens, and the cache holds 64"):
        ask(small, vocabulary, [1] * 65, max_tokens=0)


def test_a_prompt_whose_likelihood_is_no_number_fails_alone(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    model = scatter(K2Model(TINY, seed=0))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    engine = make_engine(ServedModel(model))
    broken = ask(engine, vocabulary, [1, 2, 7, 3], max_tokens=0, scores_prompt=True)
    fine = ask(engine, vocabulary, [1, 2, 3])
    ended = broken.finish()
    assert ended.reason == "failed"
    assert isinstance(ended.error, NonFiniteError)
    assert "of prompt token 1 is nan; expected a number" in str(ended.error)
    assert fine.finish().reason == "length"


def test_an_end_token_is_told_where_log_probabilities_are(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    bias = {vocabulary.im_end: 100.0}
    asked = ask(make_engine(), vocabulary, [1, 2], constraint=FreeText(vocabulary), logit_bias=bias, logprobs=True)
    end = asked.finish().end
    assert end is not None
    assert end.token == vocabulary.im_end
    assert end.likelihood is not None
    assert end.likelihood.logprob < 0
    assert asked.tokens == []


# ---- the same whatever else runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_seeded_answer_is_the_same_alone_among_others_and_after_a_prefix_hit(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel, rounded: ServedModel, kind: str
) -> None:
    """To the last bit of every log-probability."""
    model = served if kind == "float32" else rounded
    prompt = prompt_of(75)

    def asked_of(engine: Engine) -> Asked:
        return ask(engine, vocabulary, prompt, seed=5, max_tokens=24, logprobs=True)

    alone = asked_of(make_engine(model=model))
    alone.finish()
    assert alone.cached_tokens == 0

    crowd = make_engine(model=model)
    others = [ask(crowd, vocabulary, prompt_of(5 + 9 * i, i), max_tokens=5 + 3 * i, seed=None) for i in range(8)]
    among = asked_of(crowd)
    others += [ask(crowd, vocabulary, prompt_of(30 + i, 50 + i), max_tokens=30) for i in range(8)]
    among.finish()
    assert what_came(among) == what_came(alone)

    again = asked_of(crowd)
    again.finish()
    assert again.cached_tokens == 64
    assert what_came(again) == what_came(alone)
    for other in others:
        other.finish()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [16, 20, 37, 48, 64, 74])
def test_a_hit_on_what_another_prompt_left_changes_nothing(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel, rounded: ServedModel, kind: str, shared: int
) -> None:
    """The other prompt parts from this one, or ends, within a chunk and within a block."""
    model = served if kind == "float32" else rounded
    prompt = prompt_of(75)
    fresh = ask(make_engine(model=model), vocabulary, prompt, seed=5, logprobs=True)
    fresh.finish()
    for other in (prompt[:shared], [*prompt[:shared], *prompt_of(40, 9)]):
        engine = make_engine(model=model)
        ask(engine, vocabulary, other, max_tokens=3).finish()
        hit = ask(engine, vocabulary, prompt, seed=5, logprobs=True)
        hit.finish()
        assert hit.cached_tokens == shared // 16 * 16
        assert what_came(hit) == what_came(fresh)


def test_what_was_produced_is_reused_without_a_seed_and_not_with_one(
    make_engine: MakeEngine, vocabulary: Vocabulary
) -> None:
    """A conversation goes on behind the last answer, save where a seed promises the bits of a fresh reading."""
    engine, prompt = make_engine(), prompt_of(40)
    first = ask(engine, vocabulary, prompt, max_tokens=40)
    first.finish()
    longer = [*prompt, *first.tokens, 3]
    seeded = ask(engine, vocabulary, longer, seed=1, logprobs=True)
    seeded.finish()
    assert seeded.cached_tokens == 32
    free = ask(engine, vocabulary, longer, seed=None)
    free.finish()
    assert free.cached_tokens == 64
    fresh = ask(make_engine(), vocabulary, longer, seed=1, logprobs=True)
    fresh.finish()
    assert what_came(seeded) == what_came(fresh)


def test_prefixes_leave_and_come_back(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    """A cache for two prompts: the third takes the place of the one used longest ago; answers stay the same."""
    engine = make_engine(cache_tokens=144)
    expected: dict[int, list[tuple[int, float]]] = {}
    cached: list[int] = []
    for seed in (1, 2, 1, 3, 1, 2):
        asked = ask(engine, vocabulary, prompt_of(65, seed), max_tokens=8, logprobs=True)
        asked.finish()
        cached.append(asked.cached_tokens)
        assert expected.setdefault(seed, what_came(asked)) == what_came(asked)
    assert cached == [0, 0, 64, 0, 64, 0]


# ---- many at once ------------------------------------------------------------------------------------------------


def test_of_sixty_four_at_once_each_goes_on_in_every_step(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    """An answer that produces does so in every step until it ends, whoever arrives meanwhile."""
    engine = make_engine(cache_tokens=16_384)
    steps: list[list[int]] = [[] for _ in range(64)]
    ended = [threading.Event() for _ in range(64)]

    def sink_of(number: int) -> Callable[[Output], None]:
        def sink(output: Output) -> None:
            if isinstance(output, Produced):
                steps[number].append(engine.state().steps)
            if isinstance(output, Ended):
                assert output.reason == "length"
                ended[number].set()

        return sink

    for number in range(64):
        sampling = Sampling(max_tokens=20 + number % 7, seed=number)
        rules = FreeText(vocabulary, bars_end=True)
        engine.submit(prompt_of(10 + 3 * number, number), sampling, rules, sink_of(number))
    for number in range(64):
        assert ended[number].wait(PATIENCE_S)
        assert steps[number] == list(range(steps[number][0], steps[number][0] + 20 + number % 7))
    assert max(first for first, *_ in steps) < max(last for *_, last in steps), "they ran beside each other"


def test_more_than_can_wait_are_refused_at_once_and_later_ones_are_not(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel
) -> None:
    model = SteppedModel(served, stepped=True)
    engine = make_engine(model=model, max_running=2, max_waiting=3)
    asked = [ask(engine, vocabulary, [1, 2, number], max_tokens=2) for number in range(5)]
    with pytest.raises(OverloadedError, match=r"5 answers run or wait .*try again later") as caught:
        ask(engine, vocabulary, [1])
    assert caught.value.retry_after_s > 0
    model.permit(100)
    assert [one.finish().num_tokens for one in asked] == [2] * 5
    assert ask(engine, vocabulary, [1], max_tokens=1).finish().reason == "length"


# ---- ends that were not asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["submitted", "waiting", "reading", "producing", "ended"])
def test_a_cancelled_answer_frees_what_it_held(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel, stage: str
) -> None:
    model = SteppedModel(served, stepped=True)
    engine = make_engine(model=model, max_running=2, prefill_chunk_tokens=16, step_tokens=16)
    blocker = ask(engine, vocabulary, [1], max_tokens=400)
    assert model.entered.acquire(timeout=PATIENCE_S)
    if stage in ("submitted", "waiting"):
        ask(engine, vocabulary, [2], max_tokens=400)
    asked = ask(engine, vocabulary, prompt_of(40), max_tokens=3 if stage == "ended" else 300)
    # The step in progress has only the blocker; each further one reads 16 tokens, of 1 and 40, or produces.
    model.permit({"submitted": 0, "waiting": 1, "reading": 2, "producing": 6, "ended": 9}[stage])
    for _ in range({"submitted": 0, "waiting": 1, "reading": 2, "producing": 6, "ended": 9}[stage]):
        assert model.entered.acquire(timeout=PATIENCE_S)
    assert asked.answer is not None
    if stage == "ended":
        assert asked.finish().reason == "length"
    if stage == "reading":
        assert 0 < asked.answer.num_computed < 40
    if stage == "producing":
        assert asked.answer.tokens
    engine.cancel(asked.answer)
    model.permit(2)
    if stage != "ended":
        ended = asked.finish()
        assert (ended.reason, ended.num_tokens) == ("cancelled", len(asked.answer.tokens))
    assert not asked.answer.blocks
    engine.cancel(asked.answer)
    for answer in list(engine._scheduler.everyone()):
        engine.cancel(answer)
    model.permit(10)
    blocker.finish()
    wait_until_idle(engine, vocabulary)
    state = engine.state()
    assert (state.running, state.waiting, state.cache_tokens_used) == (0, 0, 0)


def test_stopping_ends_everyone_and_refuses_the_next(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel
) -> None:
    model = SteppedModel(served, stepped=True)
    engine = make_engine(model=model, max_running=2)
    asked = [ask(engine, vocabulary, prompt_of(50, number), max_tokens=400) for number in range(5)]
    model.permit(4)
    for _ in range(5):
        assert model.entered.acquire(timeout=PATIENCE_S)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    model.permit(1)
    assert [one.finish().reason for one in asked] == ["cancelled"] * 5
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    assert engine.state().cache_tokens_used == 0
    with pytest.raises(BackendError, match="shutting down"):
        ask(engine, vocabulary, [1])


class BrokenRules(FreeText):
    """Fails in one of its methods, after a few tokens."""

    def __init__(self, vocabulary: Vocabulary, fails_in: str) -> None:
        super().__init__(vocabulary, bars_end=True)
        self._fails_in, self._num_tokens = fails_in, 0

    def begin(self, room: int) -> bool:
        if self._fails_in == "begin":
            raise ZeroDivisionError("begin")
        return True

    def allowed(self, room: int) -> Mask:
        if self._fails_in == "allowed" and self._num_tokens == 2:
            raise ZeroDivisionError("allowed")
        return super().allowed(room)

    def accept(self, token: int, room: int) -> int:
        self._num_tokens += 1
        if self._fails_in == "accept" and self._num_tokens == 3:
            raise ZeroDivisionError("accept")
        return super().accept(token, room)


@pytest.mark.parametrize("fails_in", ["begin", "allowed", "accept"])
def test_rules_that_fail_end_their_own_answer_only(
    make_engine: MakeEngine, vocabulary: Vocabulary, fails_in: str
) -> None:
    engine = make_engine()
    healthy = [ask(engine, vocabulary, prompt_of(20, number), max_tokens=30) for number in range(3)]
    broken = ask(engine, vocabulary, prompt_of(20, 9), max_tokens=30, constraint=BrokenRules(vocabulary, fails_in))
    ended = broken.finish()
    assert (ended.reason, str(ended.error)) == ("failed", fails_in)
    assert ended.num_tokens == len(broken.tokens) == (0 if fails_in == "begin" else 2)
    assert [one.finish().num_tokens for one in healthy] == [30, 30, 30]
    wait_until_idle(engine, vocabulary)
    assert engine.state().cache_tokens_used == 0


def test_rules_that_leave_no_room_end_the_answer_before_it_begins(
    make_engine: MakeEngine, vocabulary: Vocabulary
) -> None:
    class NoRoom(FreeText):
        def begin(self, room: int) -> bool:
            assert room == 5
            return False

    asked = ask(make_engine(), vocabulary, [1, 2], max_tokens=5, constraint=NoRoom(vocabulary))
    assert asked.finish() == Ended(reason="length", num_tokens=0)
    assert [type(output) for output in asked.received] == [PromptRead, Ended]


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on(
    make_engine: MakeEngine, vocabulary: Vocabulary, served: ServedModel
) -> None:
    """And nothing half computed is found by the next."""
    prompt = prompt_of(60)
    expected = ask(make_engine(), vocabulary, prompt, logprobs=True)
    expected.finish()
    model = SteppedModel(served)
    engine = make_engine(model=model)
    for _ in range(2):
        model.failures.append(RuntimeError("out of memory"))
        asked = ask(engine, vocabulary, prompt)
        ended = asked.finish()
        assert (ended.reason, str(ended.error)) == ("failed", "out of memory")
        assert engine.state().cache_tokens_used == 0
    asked = ask(engine, vocabulary, prompt, logprobs=True)
    assert asked.finish().reason == "length"
    assert asked.cached_tokens == 0
    assert what_came(asked) == what_came(expected)


def test_answers_from_many_threads_at_once_all_end(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    """Submitted and cancelled at random from eight threads; afterwards nothing is held."""
    engine = make_engine(max_running=6, cache_tokens=1024)
    reasons: list[str] = []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(6):
            asked = ask(engine, vocabulary, prompt_of(int(rng.integers(1, 90)), int(rng.integers(3))), max_tokens=12)
            assert asked.answer is not None
            for _ in range(int(rng.integers(0, 14))):
                if isinstance(asked.next(), Ended):
                    break
            else:
                engine.cancel(asked.answer)
                asked.finish()
            last = asked.received[-1]
            assert isinstance(last, Ended)
            reasons.append(last.reason)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(reasons) == 48
    assert set(reasons) <= {"length", "cancelled"}
    wait_until_idle(engine, vocabulary)
    state = engine.state()
    assert (state.running, state.waiting, state.cache_tokens_used) == (0, 0, 0)


def counted(outputs: Sequence[Output]) -> int:
    return sum(isinstance(output, Produced) for output in outputs)


def test_usage_is_exact(make_engine: MakeEngine, vocabulary: Vocabulary) -> None:
    """One PromptRead first, one Ended last, as many tokens between as are counted."""
    engine = make_engine()
    for length in (1, 16, 17, 31, 32, 33, 100):
        asked = ask(engine, vocabulary, prompt_of(length, length), max_tokens=9)
        ended = asked.finish()
        assert isinstance(asked.received[0], PromptRead)
        assert counted(asked.received) == len(asked.received) - 2 == ended.num_tokens == 9
        assert asked.answer is not None
        assert asked.answer.num_computed == length + 8, "the last token's latent is never needed"


def test_a_sink_that_raises_ends_its_own_answer_and_no_other(
    make_engine: Callable[..., Engine], vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()

    def broken(output: object) -> None:
        raise RuntimeError("nobody listens")

    engine.submit([1, 2, 3], Sampling(max_tokens=4), FreeText(vocabulary), broken)
    for _ in range(3):
        assert ask(engine, vocabulary, [4, 5, 6]).finish().reason == "length"
    assert engine.state().running == engine.state().waiting == engine.state().cache_tokens_used == 0
    assert "an answer's sink failed" in caplog.text
