"""`report.html`: a run on one page that needs no other file. Loads no torch.

Everything comes from the run folder, so a report can be written again at any time, also of an unfinished run.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from chogori.data import Manifest
from chogori.durable_files import write_text_atomically
from chogori.model.accounting import count_parameters, flops_per_token
from chogori.train.config import TrainConfig
from chogori.train.config_json import to_json
from chogori.train.metrics import Evaluation, StepMetrics, evaluation, read_metrics, step_metrics
from chogori.train.plot_style import theme_css
from chogori.train.plots import PlotData, write_plots
from chogori.train.run_folder import RunFolder

_CAPTIONS = {
    "loss": "Mean negative log-likelihood of each step's tokens; the line is a moving average.",
    "heldout": "Text the model never trained on. Dots read its beginning, the diamond all of it; dashed lines are "
    "general compressors on the same files.",
    "max_logits": "QK-Clip scales a head down once its largest logit passes τ. Where no head comes near, the values "
    "are upper bounds from the log-sum-exp.",
    "expert_balance": "1 is perfect balance. The router's bias pulls every layer towards it without an auxiliary loss.",
    "expert_load": "Red experts see more tokens than the mean of their layer, blue ones fewer.",
    "grad_norm": "All parameters together.",
    "learning_rate": "As configured and used.",
    "speed": "Evaluation and checkpoints excluded. A dotted line marks where a later launch continued the run.",
}

_LANGUAGES = {"en": "English", "ja": "Japanese", "zh": "Chinese"}


def load_plot_data(folder: RunFolder, config: TrainConfig, manifest: Manifest | None) -> PlotData:
    """What the plots of a run show, from its metrics; without a manifest, without the compressors."""
    records = read_metrics(folder.metrics_file)
    clips = config.optim.optimizer == "muonclip"
    return PlotData(
        steps=[step_metrics(record) for record in records if record["kind"] == "step"],
        evaluations=[evaluation(record) for record in records if record["kind"] == "evaluation"],
        compressors={} if manifest is None else compressors(manifest),
        clip_threshold=config.optim.qk_clip.threshold if clips else None,
        continued_after=[
            cast(int, launch["start_step"]) for launch in folder.environments() if cast(int, launch["start_step"]) > 0
        ],
    )


def write_report(folder: RunFolder) -> Path:
    """Draw the plots into `plots/` and write `report.html`; returns its path.

    Raises RunError when the folder is not a run, ShardError when the manifest of its text is damaged, StorageError when
    the report cannot be written.
    """
    config = folder.load_config()
    manifest = Manifest.read(folder.data_folder(config))
    data = load_plot_data(folder, config, manifest)
    page = _page(folder, config, data, manifest, plots=write_plots(data, folder.plots))
    write_text_atomically(folder.report_file, page)
    return folder.report_file


# ---- the page -------------------------------------------------------------------------------------------------------


def _page(
    folder: RunFolder, config: TrainConfig, data: PlotData, manifest: Manifest | None, *, plots: Mapping[str, str]
) -> str:
    title = f"Run {folder.path.resolve().name}"
    whole = [entry for entry in data.evaluations if entry.whole]
    state = "complete" if whole else "not finished"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{theme_css()}
{_CSS}
</style>
</head>
<body>
<main>
<header><h1>{html.escape(title)}</h1><p>{len(data.steps):,} steps, {state}</p></header>
{_headline(config, data)}
<section class="plots">
{"".join(_figure(name, svg) for name, svg in plots.items()) if data.steps else "<p>No step was taken yet.</p>"}
</section>
{_samples(folder)}
<section class="tables">
{_summary(config, data)}
{_text_tables(manifest)}
{_launches(folder)}
</section>
<details><summary>Configuration</summary><pre>{html.escape(json.dumps(to_json(config), indent=2))}</pre></details>
</main>
</body>
</html>
"""


def _headline(config: TrainConfig, data: PlotData) -> str:
    count = count_parameters(config.model)
    tiles: list[tuple[str, str, str]] = []
    if data.evaluations:
        last = next((entry for entry in reversed(data.evaluations) if entry.whole), data.evaluations[-1])
        against = ", ".join(f"{name} {bits:.3f}" for name, bits in data.compressors.items())
        tiles.append((f"{last.bits_per_byte:.3f}", "bits per byte, held out", against))
    if data.steps:
        tokens_per_s = _median([step.timing.tokens_per_s for step in data.steps])
        share = _median([step.timing.peak_share for step in data.steps])
        tiles.append((f"{tokens_per_s:,.0f}", "tokens per second", f"{share:.0%} of the matrix peak" if share else ""))
        if any(step.max_logits for step in data.steps):
            top = max(max(step.max_logits) for step in data.steps if step.max_logits)
            clipped = sum(1 for step in data.steps if any(step.clipped_heads))
            threshold = "" if data.clip_threshold is None else f"τ = {data.clip_threshold:g}; "
            tiles.append((f"{top:.1f}", "largest attention logit", f"{threshold}{clipped} steps clipped"))
    tiles.append((_short(count.total), "parameters", f"{_short(count.active)} active per token"))
    cells = "".join(
        f"<div><strong>{html.escape(value)}</strong><span>{html.escape(name)}</span><small>{html.escape(note)}</small></div>"
        for value, name, note in tiles
    )
    return f'<section class="tiles">{cells}</section>'


def _figure(name: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(_CAPTIONS[name])}</figcaption></figure>\n"


def _summary(config: TrainConfig, data: PlotData) -> str:
    model, count = config.model, count_parameters(config.model)
    rows = [
        (
            "Model",
            f"{model.num_layers} layers ({model.num_dense_layers} dense), width {model.hidden_size}, "
            f"{model.num_heads} heads",
        ),
        (
            "Experts",
            f"{model.num_experts} routed, {model.num_experts_per_token} per token, {model.num_shared_experts} shared",
        ),
        ("Parameters", f"{count.total:,} ({count.active:,} active)"),
        ("FLOPs per token", f"{flops_per_token(model, config.sequence_length):,}"),
        ("Optimizer", f"{config.optim.optimizer}, learning rate {config.optim.lr:g}, {config.schedule.kind} schedule"),
        (
            "Step",
            f"{config.tokens_per_step:,} tokens: {config.gradient_accumulation} × {config.batch_size} rows of "
            f"{config.sequence_length}",
        ),
    ]
    if data.steps:
        last = data.steps[-1]
        waited = sum(step.timing.data_wait_s for step in data.steps)
        spent = sum(step.timing.seconds for step in data.steps)
        rows += [
            ("Trained", f"{last.tokens:,} tokens in {last.step:,} steps, {_time(last.timing.elapsed_s)}"),
            ("Loss", f"{data.steps[0].loss:.3f} at the first step, {_final_loss(data.steps):.3f} at the end"),
            ("Waiting for data", f"{waited:.2f} s, {waited / spent:.2%} of the steps"),
        ]
    for entry in data.evaluations[-1:]:
        rows.append(_evaluation_row(entry))
    return _table("Summary", rows)


def _evaluation_row(entry: Evaluation) -> tuple[str, str]:
    what = "all held-out text" if entry.whole else "part of the held-out text"
    return "Held out", (
        f"{entry.bits_per_byte:.4f} bits per byte, {entry.nats_per_token:.4f} nats per token on {what} "
        f"({entry.num_bytes:,} bytes, {entry.num_targets:,} tokens)"
    )


def _final_loss(steps: list[StepMetrics] | tuple[StepMetrics, ...] | object) -> float:
    rows = cast("list[StepMetrics]", steps)[-20:]
    return sum(step.loss for step in rows) / len(rows)


def _samples(folder: RunFolder) -> str:
    if not folder.samples_file.exists():
        return ""
    samples = cast("list[dict[str, str]]", json.loads(folder.samples_file.read_text(encoding="utf-8")))
    blocks = "".join(
        f"<pre><b>{html.escape(sample['prompt'])}</b>{html.escape(sample['text'])}</pre>" for sample in samples
    )
    heading = "<h2>What it writes</h2><p>The prompt is bold; nothing was selected.</p>"
    return f'<section class="samples">{heading}{blocks}</section>'


def _text_tables(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    rows = [
        (
            "Training text",
            f"{manifest.train.documents:,} documents, {manifest.train.bytes:,} bytes, {manifest.train.tokens:,} tokens",
        ),
        ("Held-out text", f"{manifest.heldout.documents:,} documents, {manifest.heldout.bytes:,} bytes"),
        (
            "Left out",
            f"{manifest.exact_duplicates + manifest.near_duplicates:,} duplicates, "
            f"{manifest.skipped_files:,} files that are no text",
        ),
        *((f"{name} on held-out text", f"{bits:.4f} bits per byte") for name, bits in compressors(manifest).items()),
    ]
    languages = [
        (_LANGUAGES.get(code, code), f"{value:.2f}") for code, value in manifest.bytes_per_token_by_language.items()
    ]
    tokenizer = [
        ("Vocabulary", f"{manifest.vocab_size:,} tokens, {manifest.num_merges:,} of them merged"),
        ("Training text", f"{manifest.bytes_per_token:.2f}"),
        *languages,
    ]
    return _table("Text", rows) + _table("Tokenizer: UTF-8 bytes per token", tokenizer)


def _launches(folder: RunFolder) -> str:
    rows: list[tuple[str, str]] = []
    for launch in folder.environments():
        versions = cast("dict[str, str]", launch["versions"])
        peak = cast(float, launch["peak_flop_per_s"])
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        revision = str(launch["revision"] or "unknown revision")[:19]
        rows.append(
            (
                str(launch["started"]),
                f"from step {launch['start_step']}; {launch['compute']}; {launch['processor']}; matrix peak "
                f"{peak / 1e9:,.0f} GFLOP/s; {listed}; {revision}",
            )
        )
    return _table("Launches", rows) if rows else ""


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<h2>{html.escape(title)}</h2><table>{body}</table>\n"


def compressors(manifest: Manifest) -> dict[str, float]:
    """Bits per byte of general compressors on the held-out text of a prepared corpus, by name."""
    found = {"xz": manifest.heldout_xz_bits_per_byte, "zstd -19": manifest.heldout_zstd_bits_per_byte}
    return {name: bits for name, bits in found.items() if bits is not None}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _short(count: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


_CSS = """
:root { --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
header h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
header p { margin: 2px 0 0; color: var(--muted); }
h2 { font-size: 18px; margin: 36px 0 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 24px 0; }
.tiles div { background: var(--card); border-radius: 10px; padding: 14px 18px; display: flex; flex-direction: column; }
.tiles strong { font-size: 28px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles small { color: var(--muted); min-height: 1.5em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 14px 14px 10px; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: system-ui, sans-serif !important; }
figcaption { color: var(--muted); font-size: 13px; padding: 4px 6px 0; }
.samples pre, details pre { background: var(--card); border-radius: 10px; padding: 14px 18px; overflow-x: auto; }
pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 12px; }
pre b { color: var(--first); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-top: 1px solid var(--grid); }
th { font-weight: 600; width: 12em; }
details { margin-top: 36px; }
summary { cursor: pointer; font-size: 18px; font-weight: 600; margin-bottom: 10px; }
"""
