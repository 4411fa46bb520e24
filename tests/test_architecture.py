"""What must not be imported: modules that the command line loads before it knows its work stay free of torch."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "chogori"
TORCH_FREE = (
    "chogori",
    "chogori.chat",
    "chogori.chat.tokenizer",
    "chogori.cli",
    "chogori.cli.main",
    "chogori.data",
    "chogori.data.config",
    "chogori.model",
    "chogori.model.accounting",
    "chogori.model.config",
    "chogori.optim",
    "chogori.optim.config",
    "chogori.recipes",
    "chogori.train",
    "chogori.train.config",
)
HEAVY = ("torch", "transformers", "matplotlib", "pyarrow", "datasets", "tokenizers")
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_import_loads_no_torch(module: str) -> None:
    heavy = [name for name in HEAVY if (module, name) != ("chogori.chat.tokenizer", "tokenizers")]
    script = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """A lazily exported name that its module does not define would only fail in a user's hands."""
    module = importlib.import_module(f"chogori.{package}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_unknown_name_is_an_attribute_error() -> None:
    module = importlib.import_module("chogori.model")
    with pytest.raises(AttributeError, match=r"module 'chogori\.model' has no attribute 'K3Model'"):
        module.K3Model  # noqa: B018


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(('"""', 'r"""')), f"{path} has no docstring"
    assert "To be described" not in text
