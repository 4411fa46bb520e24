"""The life of a run: prepare the text, start or continue, train, evaluate, save, sample, report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from chogori.data import PackedLoader, PreparedData, open_prepared, prepare
from chogori.data.manifest import FILE_NAME as MANIFEST_FILE
from chogori.durable_files import disk_errors, sync_folder, sync_tree
from chogori.errors import ConfigError
from chogori.model.accounting import count_parameters
from chogori.model.config import K2Config
from chogori.model.transformer import K2Model
from chogori.train.allocator import keep_freed_memory
from chogori.train.budget import Budget
from chogori.train.checkpoint import (
    CheckpointStore,
    TrainerState,
    load_model,
    load_state,
    random_states,
    restore_random_states,
)
from chogori.train.compilation import compile_blocks, should_compile
from chogori.train.config import TrainConfig
from chogori.train.evaluation import evaluate
from chogori.train.events import (
    CheckpointSaved,
    DecayDecided,
    Evaluated,
    Event,
    Listener,
    Preparing,
    RunFinished,
    RunStarted,
    SampleDrawn,
    StepFinished,
    Warned,
)
from chogori.train.interruption import Interruption
from chogori.train.loop import TrainingLoop
from chogori.train.machine import (
    describe_device,
    has_bfloat16_units,
    measure_matrix_peak,
    resolve_device,
    resolve_precision,
)
from chogori.train.metrics import Evaluation, MetricsFile, evaluation, read_metrics
from chogori.train.optimizer import StepOptimizer
from chogori.train.rate import rate_multiplier
from chogori.train.report import compressors, write_report
from chogori.train.run_folder import RunFolder, describe_environment
from chogori.train.sampling import Sampler
from chogori.train.trackers import open_trackers

SAMPLE_TOKENS = 120
"""Tokens of each sample in the report."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `train` hands back."""

    folder: RunFolder
    step: int
    """Steps taken, all launches together."""
    reason: Literal["completed", "interrupted"]
    evaluation: Evaluation | None
    """On all held-out text; None when interrupted."""


def train(
    config: TrainConfig, *, listeners: Sequence[Listener] = (), clock: Callable[[], float] = time.monotonic
) -> RunResult:
    """Train `config` into its folder `config.out`, or continue the run that is there.

    Listeners hear every event, in order; the trackers of the config are added to them. Ctrl-C or SIGTERM ends the run
    after the current step with a checkpoint.

    Raises RunError (folder busy or of another run), CheckpointError, StorageError, NonFiniteError, ConfigError and the
    errors of `chogori.data.prepare`; steps up to the last checkpoint are kept in every case.
    """
    folder = RunFolder(Path(config.out))
    with folder.lock():
        remarks = folder.start(config)
        with open_trackers(config, folder) as trackers:
            return _Launch(config, folder, [*listeners, *trackers], clock).run(remarks)


class _Launch:
    """One process's share of a run, under the run's lock."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        listeners: Sequence[Listener],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._folder = folder
        self._listeners = listeners
        self._clock = clock
        self._store = CheckpointStore(folder.checkpoints, keep=config.keep_checkpoints)
        self._checkpointed_step: int | None = None

    def run(self, remarks: Sequence[str]) -> RunResult:
        config, folder = self._config, self._folder
        for remark in remarks:
            self._emit(Warned(message=f"changed since the last launch: {remark}"))
        if folder.is_complete:
            return self._already_complete()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = resolve_device(config.device)
        dtype = resolve_precision(config, device)
        if device.type == "cpu":
            keep_freed_memory()
        if dtype == torch.bfloat16 and not has_bfloat16_units(device):
            self._emit(Warned(message="precision is bfloat16, but this processor has no bfloat16 matrix instructions"))

        self._store.remove_leftovers()
        checkpoint, damage = self._store.newest_good()
        for message in damage:
            self._emit(Warned(message=f"{message}; continuing from an older checkpoint"))
        data = self._open_data(continues=checkpoint is not None)
        model_config = self._model_config(data)
        data.tokenizer.save(folder.tokenizer)

        state = load_state(checkpoint) if checkpoint is not None else None
        if checkpoint is not None:
            model = load_model(checkpoint, model_config)
        else:
            model = K2Model(model_config, seed=config.seed)
        model = model.to(device)
        model.compute_dtype = dtype
        if should_compile(config):
            compile_blocks(model)
        optimizer = StepOptimizer(config.optim, model)
        loader = PackedLoader(
            data.train, batch_size=config.batch_size, sequence_length=config.sequence_length, seed=config.data.seed
        )
        torch.manual_seed(config.seed)
        if state is not None:
            optimizer.load_state_dict(state.optimizer)
            loader.load_state_dict(state.loader)
            restore_random_states(state.random)
            self._checkpointed_step = state.step
        start_step = 0 if state is None else state.step

        peak = measure_matrix_peak(dtype, device)
        compute = f"{str(dtype).removeprefix('torch.')} on {describe_device(device)}"
        self._note_environment(start_step, compute, peak)
        budget = Budget(config, folder.budget_file)
        loop = TrainingLoop(
            config,
            model=model,
            optimizer=optimizer,
            loader=loader,
            device=device,
            peak_flop_per_s=peak,
            step=start_step,
            tokens=0 if state is None else state.tokens,
        )
        count = count_parameters(model_config)
        self._emit(
            RunStarted(
                folder=folder.path,
                config=config,
                start_step=start_step,
                total_steps=budget.last_step,
                tokens_per_step=config.tokens_per_step,
                num_parameters=count.total,
                num_active_parameters=count.active,
                compute=compute,
                peak_flop_per_s=peak,
                optimizer=optimizer.describe(),
                compressors=compressors(data.manifest),
            )
        )
        with loader, MetricsFile(folder.metrics_file, keep_steps=start_step) as metrics:
            elapsed_s = self._train(loop, data, budget, metrics, 0.0 if state is None else state.elapsed_s)
            if loop.step < budget.last_step:
                return self._interrupted(loop.step)
            return self._finish(loop, data, metrics, elapsed_s)

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _train(
        self, loop: TrainingLoop, data: PreparedData, budget: Budget, metrics: MetricsFile, elapsed_before_s: float
    ) -> float:
        """Take steps until the last one, or until interrupted; returns the training seconds of all launches."""
        config = self._config
        started = self._clock()

        def elapsed_s() -> float:
            return elapsed_before_s + self._clock() - started

        with Interruption() as interruption:
            while loop.step < budget.last_step and not interruption.requested:
                multiplier = rate_multiplier(config.schedule, loop.step, budget.last_step, budget.num_decay_steps)
                measured = loop.take_step(rate_multiplier=multiplier, elapsed_s=elapsed_s())
                metrics.append(measured.to_record())
                self._emit(StepFinished(metrics=measured))
                if loop.step % config.eval_interval == 0 and loop.step < budget.last_step:
                    self._evaluate(loop, data, metrics, max_bytes=config.eval_bytes)
                if budget.consider(loop.step, elapsed_s()):
                    self._emit(DecayDecided(at_step=loop.step, last_step=budget.last_step))
                if loop.step % config.checkpoint_interval == 0 and loop.step < budget.last_step:
                    self._save(loop, metrics, elapsed_s())
            if self._checkpointed_step != loop.step:
                self._save(loop, metrics, elapsed_s())
        return elapsed_s()

    def _evaluate(
        self, loop: TrainingLoop, data: PreparedData, metrics: MetricsFile, *, max_bytes: int | None
    ) -> Evaluation:
        result = evaluate(
            loop.model,
            data,
            batch_size=self._config.batch_size,
            sequence_length=self._config.sequence_length,
            max_bytes=max_bytes,
            step=loop.step,
            tokens=loop.tokens,
        )
        metrics.append(result.to_record())
        self._emit(Evaluated(evaluation=result))
        return result

    def _save(self, loop: TrainingLoop, metrics: MetricsFile, elapsed_s: float) -> None:
        start = time.perf_counter()
        metrics.sync()  # before the checkpoint: it must not stand for steps whose metrics a power cut could take
        state = TrainerState(
            step=loop.step,
            tokens=loop.tokens,
            elapsed_s=elapsed_s,
            optimizer=loop.optimizer.state_dict(),
            loader=dict(loop.loader.state_dict()),
            random=random_states(),
        )
        num_bytes = self._store.save(loop.model, state)
        self._checkpointed_step = loop.step
        self._emit(
            CheckpointSaved(
                step=loop.step,
                folder=self._store.path_of(loop.step),
                seconds=time.perf_counter() - start,
                num_bytes=num_bytes,
            )
        )

    # ---- the ends ---------------------------------------------------------------------------------------------------

    def _interrupted(self, step: int) -> RunResult:
        hint = f"interrupted after step {step}, which is saved; the same command continues it"
        self._emit(RunFinished(folder=self._folder.path, step=step, reason="interrupted", hint=hint))
        return RunResult(folder=self._folder, step=step, reason="interrupted", evaluation=None)

    def _finish(self, loop: TrainingLoop, data: PreparedData, metrics: MetricsFile, elapsed_s: float) -> RunResult:
        """Each part may be cut off and is then done again by the next launch; `model/` appears last of all."""
        folder = self._folder
        result = _whole_evaluation(folder, loop.step) or self._evaluate(loop, data, metrics, max_bytes=None)
        folder.write_json(folder.evaluation_file, result.to_record())
        self._draw_samples(loop.model, data)
        write_report(folder)
        self._save_model(loop.model, data)
        hint = f"the report is {folder.report_file}; try: chogori sample {folder.path}"
        self._emit(RunFinished(folder=folder.path, step=loop.step, reason="completed", hint=hint))
        return RunResult(folder=folder, step=loop.step, reason="completed", evaluation=result)

    def _already_complete(self) -> RunResult:
        folder = self._folder
        records = read_metrics(folder.metrics_file)
        step = max((int(str(record["step"])) for record in records), default=0)
        hint = (
            f"all {step} steps were taken before; try: chogori sample {folder.path}, or train anew with another --out"
        )
        self._emit(RunFinished(folder=folder.path, step=step, reason="completed", hint=hint))
        return RunResult(folder=folder, step=step, reason="completed", evaluation=_whole_evaluation(folder, step))

    def _draw_samples(self, model: K2Model, data: PreparedData) -> None:
        sampler = Sampler(model, data.tokenizer)
        samples: list[dict[str, str]] = []
        for number, prompt in enumerate(self._config.sample_prompts):
            text = sampler.sample(prompt, max_new_tokens=SAMPLE_TOKENS, seed=self._config.seed + number)
            samples.append({"prompt": prompt, "text": text})
            self._emit(SampleDrawn(prompt=prompt, text=text))
        self._folder.write_json(self._folder.samples_file, samples)

    def _save_model(self, model: K2Model, data: PreparedData) -> None:
        final = self._folder.model
        partial = final.with_name(".model.partial")
        with disk_errors(f"save the finished model to {final} (its checkpoint is intact)"):
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(partial)
            data.tokenizer.save(partial)
            sync_tree(partial)
            partial.rename(final)
            sync_folder(final.parent)

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _report_preparation(self, stage: str, fraction: float) -> None:
        self._emit(Preparing(stage=stage, fraction=fraction))

    def _open_data(self, *, continues: bool) -> PreparedData:
        folder = self._folder.data_folder(self._config)
        # A run that continues keeps its tokens even when the files they were made from have changed meanwhile.
        if continues and (folder / MANIFEST_FILE).is_file():
            return open_prepared(folder)
        return prepare(self._config.data, folder, progress=self._report_preparation)

    def _model_config(self, data: PreparedData) -> K2Config:
        """The config's model with the tokenizer's ids filled in."""
        model, tokenizer = self._config.model, data.tokenizer
        if tokenizer.vocab_size > model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, above model.vocab_size = {model.vocab_size}; "
                "give the model a row for every token"
            )
        return dataclasses.replace(
            model,
            bos_token_id=tokenizer.bos_id if model.bos_token_id is None else model.bos_token_id,
            eos_token_id=tokenizer.eos_id if model.eos_token_id is None else model.eos_token_id,
        )

    def _note_environment(self, start_step: int, compute: str, peak_flop_per_s: float) -> None:
        threads = torch.get_num_threads()
        earlier = self._folder.environments()
        here = {"threads": threads, "compute": compute, "torch": torch.__version__}
        for name, value in here.items():
            if start_step and earlier and name in earlier[-1] and earlier[-1][name] != value:
                self._emit(
                    Warned(
                        message=f"{name} was {earlier[-1][name]} and is now {value}: the run continues, but not "
                        "with the bits it would have had"
                    )
                )
        record = {
            **describe_environment(),
            **here,
            "start_step": start_step,
            "peak_flop_per_s": peak_flop_per_s,
        }
        self._folder.add_environment(json.loads(json.dumps(record)))


def _whole_evaluation(folder: RunFolder, step: int) -> Evaluation | None:
    """The evaluation on all held-out text after `step`, when an earlier launch took it."""
    for record in read_metrics(folder.metrics_file):
        if record["kind"] == "evaluation" and record["step"] == step and record["whole"]:
            return evaluation(record)
    return None
