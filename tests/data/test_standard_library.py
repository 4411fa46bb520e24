"""The default corpus holds what its docstring says."""

import sys
from pathlib import Path

import pytest

from chogori.data.document import SkippedFile
from chogori.data.standard_library import read_standard_library, standard_library_files, standard_library_root
from chogori.errors import CorpusError


def test_source_and_documentation_of_the_running_python() -> None:
    skipped: list[SkippedFile] = []
    documents = {document.name: document.text for document in read_standard_library(skipped)}
    assert documents["python/json/decoder.py"] == (standard_library_root() / "json" / "decoder.py").read_text("utf-8")
    assert documents["python/topics/lambda"].startswith("Lambdas\n*******")
    assert list(documents) == sorted(documents, key=lambda name: name.replace("topics/", "pydoc_data/topics.py"))
    size = sum(len(text.encode()) for text in documents.values())
    assert 8e6 < size < 40e6
    assert skipped == []
    for left_out in ("site-packages", "/test/", "/tests/", "_sysconfigdata", "__pycache__"):
        assert not [name for name in documents if left_out in name]


def test_root_is_the_base_interpreters() -> None:
    assert standard_library_root().is_relative_to(sys.base_prefix)
    assert (standard_library_root() / "os.py").is_file()


def test_a_python_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no Python source.*data\.paths and turn data\.stdlib off"):
        standard_library_files(tmp_path)


def test_a_file_of_another_encoding_is_listed(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1")
    (tmp_path / "bad.py").write_bytes(b"# \xe9")
    skipped: list[SkippedFile] = []
    assert [document.name for document in read_standard_library(skipped, tmp_path)] == ["python/good.py"]
    assert skipped == [SkippedFile("python/bad.py", "not UTF-8 (byte 2)")]
