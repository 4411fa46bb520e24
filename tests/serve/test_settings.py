from __future__ import annotations

from pathlib import Path

import pytest

from chogori.errors import ConfigError
from chogori.serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 70_000}, "serve.port is 70000; expected 0 to 65535"),
        ({"drain_timeout_s": -1}, "serve.drain_timeout_s is -1; expected 0 or more seconds"),
        ({"max_body_bytes": 1}, "serve.max_body_bytes is 1; expected at least 1000 bytes"),
        ({"default_temperature": 3}, "serve.default_temperature is 3; expected 0 to 2"),
        ({"open": True, "require_keys": True}, "serve.open and serve.require_keys are both set"),
        ({"host": "0.0.0.0"}, "serve.host is '0.0.0.0', which others can reach; say whom to answer: --require-keys"),
        ({"host": "::"}, "serve.host is '::', which others can reach"),
        ({"host": "example.org"}, "serve.host is 'example.org', which others can reach"),
        ({"anthropic_temperature_factor": 0}, "serve.anthropic_temperature_factor is 0; expected above 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeSettings(**changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_s_own_addresses_are_open(host: str) -> None:
    assert not ServeSettings(host=host).require_keys


@pytest.mark.parametrize("choice", [{"open": True}, {"require_keys": True}])
def test_beyond_this_machine_somebody_has_chosen(choice: dict[str, bool]) -> None:
    assert ServeSettings(host="0.0.0.0", **choice).host == "0.0.0.0"  # pyright: ignore[reportArgumentType]


def test_a_database_s_password_is_not_shown() -> None:
    assert "open-sesame" not in repr(ServeSettings(database="postgresql://u:open-sesame@h/n"))


def test_files_are_kept_where_the_system_keeps_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert ServeSettings().data_folder == Path("/data/chogori/serve")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", "/home/ada")
    assert ServeSettings().data_folder == Path("/home/ada/.local/share/chogori/serve")
