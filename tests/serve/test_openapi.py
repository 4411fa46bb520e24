"""The OpenAPI document against the live server: schemathesis makes requests from the one and judges the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from chogori.serve.app import create_app
from chogori.serve.settings import ServeSettings
from tests.serve.live_server import LiveServer
from tests.serve.scripted_backend import ScriptedBackend

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
SAID_BY_THE_DOCUMENT = ("_value", "_parameter", "_type", "_length", "empty_array", "empty_string", "invalid_json")
"""How the codes of such errors end."""
WORDS_FOR_WHAT_THE_DOCUMENT_SAYS = ("required", "should", "not permitted", "not JSON", "tag", "cannot be read")


def is_said_by_the_document(error: dict[str, Any]) -> bool:
    """Whether a request that fits the document could not have made this error. Anthropic's have no code."""
    if "code" in error:
        return (error["code"] or "").endswith(SAID_BY_THE_DOCUMENT)
    return any(words in error["message"] for words in WORDS_FOR_WHAT_THE_DOCUMENT_SAYS)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_documented(mode: GenerationMode, tmp_path: Path, subtests: pytest.Subtests) -> None:
    serve_settings = ServeSettings(port=0, data_dir=tmp_path)
    app = create_app(ScriptedBackend.saying("Hel", "lo"), serve_settings)
    with LiveServer(app, serve_settings) as server:
        document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for result in document.get_all_operations():
            operation: Any = result.ok() if isinstance(result, Ok) else pytest.fail(str(result.err()))
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # any path is some id: nothing can be wrong with it

            @given(operation.as_strategy(generation_mode=mode))
            @settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
            def check(case: Any) -> None:
                response = case.call()
                # In a form every value is text, whatever schemathesis made it from: none can be of a wrong type.
                excluded = [negative_data_rejection] if case.path == "/v1/files" else []
                case.validate_response(response, excluded_checks=[positive_data_acceptance, *excluded])
                if mode is GenerationMode.POSITIVE and response.status_code == 400:
                    # A document cannot hold rules between parameters; everything else it must have said.
                    assert not is_said_by_the_document(response.json()["error"]), response.text

            with subtests.test(operation.label):
                check()
