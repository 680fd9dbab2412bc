"""Where the settings come from: the command line, the environment, a TOML file, the defaults, in that order."""

import re
import tomllib
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from harken_server.settings import ENV_PREFIX, BadSettings, Settings

# What Kubernetes puts into every container beside a Service called harken, or harken-something. The name of a
# setting may match as well (a Service `harken-metrics` gives HARKEN_METRICS_PORT); then the value tells.
_KUBERNETES_NAME: Final = re.compile(
    r"HARKEN_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# HARKEN_PORT and its like are too near to a mistyped setting to be known by their names alone.
_KUBERNETES_PORT: Final = re.compile(r"HARKEN_(\w+_)?PORT")
_KUBERNETES_URL: Final = re.compile(r"(tcp|udp|sctp)://")


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings of a server started with these arguments in this environment.

    Raises BadSettings with one line for a person. Exits with 0 on --help.
    """
    values = _from_environment(environment)
    config = _config_path(arguments) or values.get("config")
    toml = _from_toml(Path(config)) if config else {}
    command_line = _from_arguments(arguments)
    try:
        return Settings(**{**toml, **values, **command_line})
    except ValidationError as error:
        raise BadSettings("; ".join(_sentence(problem) for problem in error.errors())) from error


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not the whole usage."""
        raise BadSettings(f"{message} (--help lists the options)")


def _config_path(arguments: Sequence[str]) -> str | None:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        config: str | None = parser.parse_known_args(arguments)[0].config
    except ArgumentError:
        return None  # a --config without a value; the full parser says so
    return config


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSettings(f"config: cannot read {path}: {error}") from error
    unknown = sorted(values.keys() - Settings.model_fields.keys())
    if unknown:
        raise BadSettings(f"config: {path} has the unknown setting {unknown[0]!r}{_nearest(unknown[0])}")
    return values


def _from_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    parser = _Parser(
        prog="harken-server",
        usage="harken-server [options]",
        description=f"{Settings.__doc__}\n\nEvery option is also an environment variable (--grpc-port: "
        f"{ENV_PREFIX}GRPC_PORT) and a key of the TOML file (grpc_port).",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = CliSettingsSource[Any](
        Settings,
        root_parser=parser,
        cli_parse_args=list(arguments),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    return source()


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for variable, value in environment.items():
        # The client's, whose shell this may be.
        if not variable.startswith(ENV_PREFIX) or variable == "HARKEN_API_KEY":
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        known = name in Settings.model_fields and variable.isupper()
        by_name = _KUBERNETES_NAME.fullmatch(variable) and not known
        is_url = _KUBERNETES_URL.match(value) is not None
        if by_name or (is_url and (_KUBERNETES_PORT.fullmatch(variable) or _KUBERNETES_NAME.fullmatch(variable))):
            continue
        if not known:
            raise BadSettings(f"{variable} in the environment is not a setting{_nearest(name)}")
        values[name] = value
    return values


def _nearest(name: str) -> str:
    nearest = get_close_matches(name.lower(), Settings.model_fields, n=1)
    return f"; did you mean {nearest[0]} ({ENV_PREFIX}{nearest[0].upper()})?" if nearest else ""


def _sentence(problem: ErrorDetails) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    return (
        f"{name}: {problem['msg']}, not {problem['input']!r} (--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()})"
    )
