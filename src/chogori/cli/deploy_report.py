"""What `chogori deploy` shows: the plan as tables, the files, and how far a start is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

from chogori.cli.quantities import count_in_words
from chogori.deploy.fleet import Access
from chogori.deploy.formats.files import Deployment, File
from chogori.deploy.gpus import GIB
from chogori.deploy.launch import LaunchSettings, Progress, launch
from chogori.deploy.memory import WORKSPACE
from chogori.deploy.plan import Option, Plan
from chogori.deploy.weights import total_bytes
from chogori.model.accounting import count_parameters


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """The model, the machine, every layout with what speaks for it, and the memory of a GPU under the chosen one."""
    console = console or Console(highlight=False)
    console.print(_heading(plan))
    console.print()
    console.print(_layouts(plan))
    for option in plan.options:
        console.print(Padding(f"{option.words}: {escape(_why(option))}", (0, 0, 0, 2)), style="dim")
    console.print()
    console.print(_memory(plan))
    for remark in remarks(plan):
        console.print(f"[yellow]note[/]  {escape(remark)}")
    console.print()


def print_files(files: Sequence[File], out: Path | None, console: Console | None = None) -> None:
    """The files themselves, or where they were written."""
    console = console or Console(highlight=False)
    if out is not None:
        console.print(f"written to [bold]{escape(str(out))}[/]: {', '.join(file.name for file in files)}")
        return
    for file in files:
        console.print(f"[bold]{file.name}[/]")
        language = "yaml" if file.name.endswith(".yaml") else "ini" if file.name.endswith(".service") else "bash"
        syntax = Syntax(file.content.rstrip(), language, theme="ansi_dark", background_color="default")
        # A terminal's width must not break a line that is to be copied.
        console.print(Padding(syntax, (0, 0, 1, 2)) if console.is_terminal else file.content, soft_wrap=True)


def run_launch(deployment: Deployment, out: Path | None, timeout_s: float, access: Access | None) -> int:
    """Start the deployment with its progress on the screen. Returns the exit status."""
    console = Console(highlight=False)
    folder = out or Path(tempfile.mkdtemp(prefix=f"chogori-{deployment.name}-"))
    settings = LaunchSettings(folder=folder, start_timeout_s=timeout_s, access=access)
    console.print(f"starting {deployment.title}; its log is {escape(str(folder / 'engine.log'))}")
    with console.status("waiting for the engine") as status:

        def show(progress: Progress) -> None:
            status.update(f"{progress.elapsed_s:,.0f} s  [dim]{escape(progress.last_line[: console.width - 12])}[/]")

        return launch(deployment, settings, show, on_ready=status.stop)


def remarks(plan: Plan) -> list[str]:
    """What must be known before the commands are used."""
    checkpoint = plan.request.checkpoint
    found: list[str] = []
    if checkpoint.converted:
        found.append(f"the weights must be converted from {checkpoint.stored_format} to {checkpoint.format} first")
    if checkpoint.format == "fp8" and not plan.machine.gpu.fp8:
        found.append(
            f"{plan.machine.gpu.name} cannot compute in FP8: {plan.engine.name} expands the weights on the fly, slower"
        )
    if checkpoint.stored_bytes is not None:
        sized = total_bytes(checkpoint)
        if abs(checkpoint.stored_bytes - sized) > sized / 50:
            found.append(
                f"the folder's index counts {checkpoint.stored_bytes / GIB:,.1f} GiB, the model's sizes "
                f"{sized / GIB:,.1f} GiB: it holds tensors that are not planned for, or lacks some"
            )
    return found


def _heading(plan: Plan) -> str:
    checkpoint, machine = plan.request.checkpoint, plan.machine
    count = count_parameters(checkpoint.sizes)
    memory = machine.num_gpus * machine.gpu.memory_bytes / GIB
    return (
        f"[bold]{escape(checkpoint.name)}[/]  {count_in_words(count.total)} parameters, {count_in_words(count.active)} "
        f"active, {total_bytes(checkpoint) / GIB:,.1f} GiB in {checkpoint.format}\n"
        f"[bold]{machine.words}[/]  {memory:,.0f} GiB, {machine.gpu.link} {machine.gpu.link_gb_per_s:,} GB/s a GPU"
        f"{'' if machine.gpu.fp8 else ', no FP8'}\n"
        f"[bold]{plan.engine.name}[/]  sequences of {plan.request.context:,} tokens, at least "
        f"{plan.request.concurrency:,} at one time"
    )


def _layouts(plan: Plan) -> Table:
    title = "layouts, GiB on each GPU"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("", no_wrap=True)
    for name in ("weights", WORKSPACE, "cache"):
        table.add_column(name, justify="right")
    table.add_column("sequences at one time", justify="right", style="bold")
    for option in plan.options:
        table.add_row(*_row(option, option is plan.chosen))
    return table


def _row(option: Option, chosen: bool) -> list[str]:
    if option.obstacle is not None:
        return ["", option.name, "", "", "", "-"]
    memory = option.serving.memory
    workspace = memory.items[-1].bytes
    figures = [memory.weight_bytes, workspace, memory.cache_room_bytes]
    return [
        "[green]▸[/]" if chosen else "",
        f"[green]{option.words}[/]" if chosen else option.words,
        *(f"{figure / GIB:,.1f}" for figure in figures),
        f"{option.num_sequences:,}",
    ]


def _why(option: Option) -> str:
    return f"not possible: {option.obstacle}" if option.obstacle is not None else "; ".join(option.reasons)


def _memory(plan: Plan) -> Table:
    group = plan.chosen.serving
    memory = group.memory
    title = f"the fullest GPU under {group.layout.words}, {memory.memory_bytes / GIB:,.1f} GiB"
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("what", min_width=22)
    table.add_column("GiB", justify="right", style="bold")
    table.add_column("basis", style="dim")
    for item in memory.items:
        table.add_row(item.kind, f"{item.bytes / GIB:,.2f}", escape(item.basis))
    per_token = f"{memory.cache_bytes_per_token:,} bytes a token, {memory.cache_tokens:,} tokens on all GPUs together"
    table.add_row("latent cache", f"{memory.cache_room_bytes / GIB:,.2f}", per_token)
    left = memory.memory_bytes - memory.cache_room_bytes - sum(item.bytes for item in memory.items)
    table.add_row("left free", f"{left / GIB:,.2f}", f"outside the share that {plan.engine.name} takes")
    return table
