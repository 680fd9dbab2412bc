"""Settings: one value from four places, and errors that a person can act on."""

from pathlib import Path

import pytest
from harken_server.settings import BadSettings, Settings
from harken_server.sources import load


def test_defaults_are_safe() -> None:
    settings = load([], {})
    assert settings.listen == "127.0.0.1"
    assert not settings.so_reuseport
    assert settings.max_message_bytes == 16 << 20
    assert settings.max_inputs == 1024
    assert settings.max_connections == 1024
    assert settings.max_request_s == 30
    assert settings.drain_delay_s == 5
    assert (settings.http_port, settings.grpc_port) == (8000, 8001)
    assert (settings.metrics_port, settings.health_port) == (8002, 8003)
    assert not settings.model_control


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "harken.toml"
    config.write_text('lanes = 1\nmax_inputs = 10\nlisten = "0.0.0.0"\n')
    environment = {"HARKEN_CONFIG": str(config), "HARKEN_LANES": "2", "HARKEN_MAX_INPUTS": "20"}
    settings = load(["--lanes", "3"], environment)
    assert (settings.lanes, settings.max_inputs, settings.listen) == (3, 20, "0.0.0.0")  # noqa: S104 - a value, not a socket
    assert load([f"--config={config}"], {}).max_inputs == 10


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_taken_from_the_environment(name: str, tmp_path: Path) -> None:
    config = tmp_path / "empty.toml"
    config.write_text("")
    texts = {
        "config": str(config), "models": "elsewhere", "state_dir": "elsewhere", "listen": "::", "device": "cpu",
        "model_name": "other", "api_keys": "keys.toml",
        "tls_certificate": "a.pem", "tls_key": "a.key", "tls_client_ca": "ca.pem",
        "tenant_weights": "a=3,b=0.5", "bundle_digest": "sha256:" + "0" * 64,
        "access_log_ratio": "0.5", "trace_ratio": "0.5", "trace_endpoint": "http://collector:4317",
        "log_level": "debug", "log_format": "json", "lane_sessions": "own", "gpu_arena_extend": "next-power-of-two",
    }  # fmt: skip
    default = getattr(load([], {}), name)
    number = not default if isinstance(default, bool) else (default if name not in texts else 0) + 7
    other = texts.get(name, str(number))
    value = getattr(load([], {f"HARKEN_{name.upper()}": other}), name)
    assert value != default
    assert str(value) == other


@pytest.mark.parametrize(
    "variable",
    [
        "HARKEN_SERVICE_HOST", "HARKEN_SERVICE_PORT", "HARKEN_SERVICE_PORT_GRPC", "HARKEN_PORT", "HARKEN_PORT_8001_TCP",
        "HARKEN_PORT_8001_TCP_ADDR", "HARKEN_PORT_8001_TCP_PORT", "HARKEN_PORT_8001_TCP_PROTO",
        "HARKEN_METRICS_SERVICE_HOST", "HARKEN_METRICS_PORT", "HARKEN_GRPC_PORT", "HARKEN_GRPC_PORT_8001_TCP",
    ],
)  # fmt: skip
def test_what_kubernetes_injects_beside_a_service_is_ignored(variable: str) -> None:
    assert load([], {variable: "tcp://10.0.0.1:8001"}) == load([], {})


def test_a_clients_key_in_the_same_shell_is_no_setting() -> None:
    assert load([], {"HARKEN_API_KEY": "k" * 43}) == load([], {})


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"HARKEN_GRPC_PROT": "1"}, "HARKEN_GRPC_PROT in the environment is not a setting; did you mean grpc_port"),
        ([], {"HARKEN_GRPC_PORT": "x"}, "grpc_port: .*not 'x' \\(--grpc-port, HARKEN_GRPC_PORT\\)"),
        ([], {"HARKEN_GRPC_PORT": "65536"}, "grpc_port: .*65535, not '65536'"),
        ([], {"harken_lanes": "1", "HARKEN_lanes": "1"}, "HARKEN_lanes in the environment is not a setting"),
        (
            [],
            {"HARKEN_GPRC_PORT": "19099"},
            "HARKEN_GPRC_PORT in the environment is not a setting; did you mean",
        ),
        ([], {"HARKEN_PORT": "8001"}, "HARKEN_PORT in the environment is not a setting"),
        (["--device", "tpu"], {}, "device: Input should be .*'cuda', not 'tpu'"),
        (["--bogus", "1"], {}, "unrecognized arguments: --bogus"),
        (["--lane", "1"], {}, "unrecognized arguments: --lane"),
        (["--lanes", "-1"], {}, "lanes: .*not '-1'"),
        (["--config", "absent.toml"], {}, "config: cannot read absent.toml"),
        (["--config"], {}, "--config: expected one argument"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(arguments: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(BadSettings, match=message) as error:
        load(arguments, environment)
    assert "\n" not in str(error.value)


def test_a_file_with_an_unknown_or_unreadable_setting_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "harken.toml"
    config.write_text("lane = 3")
    with pytest.raises(BadSettings, match="unknown setting 'lane'; did you mean lanes"):
        load(["--config", str(config)], {})
    config.write_text("lanes = = 3")
    with pytest.raises(BadSettings, match="cannot read"):
        load(["--config", str(config)], {})


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(["--help"], {})
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, setting in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert setting.description is not None
        assert setting.description.split(".")[0] in text.replace("- ", "-")


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("a=1,a=2", "each entry is NAME=WEIGHT, each name given once, which 'a=2' is not"),
        ("a", "each entry is NAME=WEIGHT, each name given once, which 'a' is not"),
        ("two words=1", "each entry is NAME=WEIGHT, each name given once, which 'two words=1' is not"),
        ("b=1,a=1=2", "each entry is NAME=WEIGHT, each name given once, which 'a=1=2' is not"),
        ("a=much", "the weight of a is a number, not 'much'"),
        ("a=0", "the weight of a is between 0.001 and 1000, not 0"),
        ("a=nan", "the weight of a is between 0.001 and 1000, not nan"),
        (",".join(f"t{number}=1" for number in range(65)), "at most 64 tenants have weights, not 65"),
    ],
)
def test_weights_that_are_none_are_told(weights: str, told: str) -> None:
    with pytest.raises(BadSettings) as error:
        load(["--tenant-weights", weights], {})
    assert f"tenant_weights: Value error, {told}, not" in str(error.value)
    assert load(["--tenant-weights", "a=3, b=0.5"], {}).weights_by_tenant == {"a": 3.0, "b": 0.5}
