"""What a run would need, before it is started: parameters, operations, memory, time. `--dry-run` prints it."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from chogori.cli.quantities import bytes_in_words, count_in_words, duration_in_words, operations_in_words
from chogori.model.accounting import count_parameters, flops_per_token, memory_plan
from chogori.train.config import TrainConfig

ASSUMED_UTILISATION = {"cpu": 0.3, "cpu with AMX": 0.1, "cuda": 0.2}
"""Share of the measured matrix peak that a whole training step reaches, in round figures. Two cores with AVX512_BF16
take a step of the nano recipe at 36 % of theirs (LOG 2026-11-23); AMX raises the peak more than the step's speed;
published mixtures of experts reach 20 to 35 % of an H100."""


def print_plan(config: TrainConfig, console: Console | None = None) -> None:
    """Print the plan of `config`; the lines that need no torch come at once, the expected time after measuring."""
    console = console or Console()
    console.print(_sizes(config))
    console.print(_memory(config))
    console.print(_time(config, console))


def _sizes(config: TrainConfig) -> Table:
    count = count_parameters(config.model)
    table = _table("model")
    table.add_row("parameters, total", count_in_words(count.total), f"{count.total:,}")
    table.add_row("parameters, active", count_in_words(count.active), f"{count.active:,} per token")
    parts = {
        "embedding and head": count.embedding + count.head,
        "attention": count.attention,
        "dense feed-forward": count.dense_ffn,
        "routed experts": count.routed_experts,
        "shared experts": count.shared_experts,
        "routers and norms": count.router + count.norms,
    }
    for name, number in parts.items():
        table.add_row(f"  {name}", count_in_words(number), f"{number / count.total:.1%} of all", style="dim")
    flops = flops_per_token(config.model, config.sequence_length)
    table.add_row(
        "FLOPs per token",
        operations_in_words(flops),
        f"forward and backward, {config.sequence_length:,} tokens of context",
    )
    return table


def _memory(config: TrainConfig) -> Table:
    plan = memory_plan(
        config.model,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        weight_dtype="float32",
        compute_dtype="float32" if config.precision == "float32" else "bfloat16",
        optimizer=config.optim.optimizer,
    )
    table = _table("memory of one process with the whole model")
    for item in plan.items:
        table.add_row(item.kind, bytes_in_words(item.bytes), item.basis)
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    table.add_row("together", bytes_in_words(plan.total_bytes), f"this machine has {bytes_in_words(machine_bytes)}")
    return table


def _time(config: TrainConfig, console: Console) -> Table:
    tokens = config.total_steps * config.tokens_per_step
    operations = tokens * flops_per_token(config.model, config.sequence_length)
    table = _table("time")
    table.add_row("steps", f"{config.total_steps:,}", f"of {config.tokens_per_step:,} tokens")
    table.add_row("tokens", count_in_words(tokens), "all steps")
    table.add_row("FLOPs", operations_in_words(operations), "all tokens")
    try:
        # Lazily: only the expected time needs torch, and all that is above is already on the screen.
        import torch

        from chogori.train.machine import measure_matrix_peak, resolve_device, resolve_precision
    except ModuleNotFoundError:
        table.add_row("expected", "unknown", "measuring this machine needs torch: pip install 'chogori[train]'")
        return table
    with console.status("measuring the matrix peak of this machine"):
        device = resolve_device(config.device)
        dtype = resolve_precision(config, device)
        peak = measure_matrix_peak(dtype, device)
    has_tiles = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16")
    share = ASSUMED_UTILISATION["cpu with AMX" if has_tiles else device.type]
    seconds = operations / (peak * share)
    type_name = str(dtype).removeprefix("torch.")
    table.add_row("matrix peak", f"{operations_in_words(peak)}FLOP/s", f"measured, {type_name} on {device.type}")
    table.add_row("expected", duration_in_words(seconds), f"assuming {share:.0%} of that peak")
    if config.time_limit_s is not None:
        table.add_row("limit", duration_in_words(config.time_limit_s), "time_limit_s ends the run earlier")
    return table


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("what", min_width=20)
    table.add_column("figure", justify="right", style="bold", min_width=14)
    table.add_column("basis", style="dim")
    return table
