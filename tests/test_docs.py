"""README and docs/ against the repository: commands that parse, targets and files that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from chogori.cli import chat, deploy, export, keys, prices, report, sample, serve, train, usage
from chogori.cli.main import VERBS
from chogori.recipes import nano
from chogori.train.config_json import to_json

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PARSERS = {
    "train": train.parse,
    "sample": sample.parse,
    "report": report.parse,
    "serve": serve.parse,
    "chat": chat.parse,
    "export": export.parse,
    "deploy": deploy.parse,
    "keys": keys.parse,
    "usage": usage.parse,
    "prices": prices.parse,
}


def shell_lines() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block, comments dropped."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found += [(page.name, line) for line in block.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_command_is_one(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/nano")
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(to_json(nano())), encoding="utf-8")

    program, *arguments = shlex.split(line, comments=True)
    match program:
        case "chogori":
            verb, *rest = arguments
            PARSERS[verb](rest)
        case "make":
            targets = [argument for argument in arguments if "=" not in argument]
            for target in targets:
                assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"{page}: no make target {target}"
        case "python":
            assert (ROOT / arguments[0]).is_file(), f"{page}: {arguments[0]} does not exist"
        case "pip":
            extras = set(re.findall(r"\[([\w,]+)\]", line))
            text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            assert all(f"\n{extra} = [" in text for extra in extras)
        case _:
            pytest.fail(f"{page} tells the reader to run {program!r}, which this test does not know")


def test_every_verb_has_a_parser_here() -> None:
    assert set(PARSERS) == set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_help_names_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    for target in set(phony[1].split()) - {"help", "generate"}:
        assert f"# make {target} " in MAKEFILE
