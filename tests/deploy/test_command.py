"""Commands as bash reads them back."""

import json
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.deploy.command import Command, Expansion

ECHO = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('SETTING')]))"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def run(command: Command) -> list[object]:
    environment = {"HEAD": "10.0.0.1", "RANK": "3", "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    result = subprocess.run(["bash", "-c", command.as_bash()], capture_output=True, check=True, env=environment)
    return json.loads(result.stdout)


@settings(max_examples=25)
@given(words=st.lists(TEXTS, max_size=4), setting=TEXTS)
def test_every_word_means_itself(words: list[str], setting: str) -> None:
    command = Command(words=(sys.executable, "-I", "-c", ECHO, *words), environment={"SETTING": setting})
    assert run(command) == [words, setting]


def test_expansions_are_expanded_and_stay_one_word() -> None:
    words = ("${HEAD}", Expansion("${HEAD}:50000"), Expansion("$((RANK * 8))"))
    command = Command(words=(sys.executable, "-I", "-c", ECHO, *words))
    assert run(command) == [["${HEAD}", "10.0.0.1:50000", "24"], None]
