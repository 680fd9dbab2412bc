"""What an operator asks of a running server: its settings, and what of them may change."""

import json
from pathlib import Path

import pytest
from client.command import harken
from harken_client import Client, HarkenError, InvalidInput
from support.server import RunningServer, running_server


def test_it_is_off_unless_the_operator_turns_it_on(tiny_server: RunningServer) -> None:
    with Client(tiny_server.target) as client, pytest.raises(HarkenError, match="TURNED_OFF") as error:
        client.settings({"log_level": "debug"})
    assert "remote_settings" in str(error.value)


@pytest.mark.parametrize("back", [False, True])
def test_all_settings_are_told_and_what_is_changed_holds_until_it_is_changed_back(
    tiny_models: Path, back: bool
) -> None:
    options = ("--remote-settings", "--max-inputs", "7")
    with running_server(tiny_models, *options) as server, Client(server.target) as client:
        told = {setting.name: setting for setting in client.settings()}
        assert list(told) == [line.split("`")[1] for line in documented()]
        assert (told["max_inputs"].value, told["max_inputs"].is_default) == ("7", False)
        assert (told["max_text_bytes"].value, told["max_text_bytes"].is_default) == ("262144", True)
        assert [name for name, setting in told.items() if setting.changeable] == ["log_level"]

        shown = harken("settings", "-s", server.target, "--set", "log_level=error").stdout
        assert "*+ log_level=error\n" in shown
        assert "*  max_inputs=7\n" in shown
        if back:
            client.settings({"log_level": "info"})
        lines = len(server.log)
        server.terminate()
        assert server.wait_exit() == 0
        server.wait_until("its last line", lambda: len(server.log) == lines + (2 if back else 0))
        assert [line["event"] for line in server.log[lines:]] == (["draining", "stopped"] if back else [])


def documented() -> list[str]:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    return [line for line in page.read_text().splitlines() if line.startswith("| `")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_inputs": "9"}, r"change: is 'max_inputs', which is not one of log_level"),
        ({"log_level": "debug", "models": "/etc"}, r"change: is 'models', which is not one of log_level"),
        ({"log_level": "loud"}, r"change\[log_level\]: is 'loud', which is not 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_changes_nothing(
    tiny_models: Path, change: dict[str, str], message: str
) -> None:
    with running_server(tiny_models, "--remote-settings") as server, Client(server.target) as client:
        before = client.settings()
        with pytest.raises(InvalidInput, match=message):
            client.settings(change)
        assert client.settings() == before


def test_the_command_prints_json_and_refuses_what_is_no_pair(tiny_models: Path) -> None:
    with running_server(tiny_models, "--remote-settings") as server:
        assert json.loads(harken("settings", "-s", server.target, "--json").stdout)["remote_settings"] == "True"
        wrong = harken("settings", "-s", server.target, "--set", "log_level")
        assert wrong.returncode == 2
        assert "NAME=VALUE" in wrong.stderr
