"""The text of a record: a JSONL line, a Parquet row, a row of a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from chogori.errors import CorpusError


def text_of_record(fields: Mapping[str, object], text_field: str, where: str) -> str:
    """The text in `text_field`; empty where it is null. Raises CorpusError, naming `where`, when it is no text."""
    if text_field not in fields:
        raise CorpusError(
            f"{where}: found fields {', '.join(fields) or '(none)'}; expected text in {text_field!r}. Name the field "
            "with data.text_field."
        )
    text = fields[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: {text_field!r} is of type {type(text).__name__}; expected text. Name another field with "
            "data.text_field."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: {text_field!r} holds half of a surrogate pair (U+{ord(text[error.start]):04X}), which is no "
            "Unicode text; mend or remove the record."
        ) from error
    return text
