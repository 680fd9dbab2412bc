"""The service harken.v1.Admin: what this server is set to, and the little of it that may change while it runs."""

from collections.abc import Mapping
from typing import Final

import grpc
from harken.v1 import admin_pb2
from pydantic import ValidationError

from harken_server.errors import BadValue, InvalidRequest, TurnedOff
from harken_server.rpc.calls import Call, Calls, Context
from harken_server.rpc.listener import Handlers
from harken_server.rpc.wire import parse
from harken_server.settings import Settings
from harken_server.telemetry import logs

SERVICE: Final = "harken.v1.Admin"

CHANGEABLE: Final = frozenset({"log_level"})
"""What a rollout would cost the very state that an operator wants to look at. All else is the deployment's."""


class Admin:
    """Handlers that take and give raw bytes."""

    def __init__(self, settings: Settings, calls: Calls) -> None:
        self._settings = settings
        self._calls: Final = calls

    def handlers(self) -> Handlers:
        """What a gRPC server registers."""
        return {"Settings": grpc.unary_unary_rpc_method_handler(self.settings)}

    async def settings(self, raw: bytes, context: Context) -> bytes:
        """Settings(SettingsRequest) -> SettingsResponse."""

        async def work(_: Call) -> bytes:
            request = parse(admin_pb2.SettingsRequest, raw, self._settings.max_message_bytes)
            if not self._settings.remote_settings:
                raise TurnedOff("remote_settings")
            if request.change:
                self._change(request.change)
            return self._all().SerializeToString()

        return await self._calls.answer("Settings", context, work)

    def _change(self, change: Mapping[str, str]) -> None:
        """All of it or nothing. Raises InvalidRequest."""
        for name in sorted(change):
            if name not in CHANGEABLE:
                raise InvalidRequest((BadValue("change", repr(name), f"one of {', '.join(sorted(CHANGEABLE))}"),))
        try:
            changed = Settings.model_validate({**self._settings.model_dump(), **change})
        except ValidationError as error:
            wrong = error.errors()[0]
            name = str(wrong["loc"][0])
            raise InvalidRequest(
                (BadValue(f"change[{name}]", repr(change[name]), wrong["msg"].removeprefix("Input should be ")),)
            ) from None
        logs.set_level(changed.log_level)
        self._settings = changed

    def _all(self) -> admin_pb2.SettingsResponse:
        response = admin_pb2.SettingsResponse()
        for name, field in Settings.model_fields.items():
            value = getattr(self._settings, name)
            response.settings.add(
                name=name,
                value="" if value is None else str(value),
                is_default=value == field.default,
                changeable=name in CHANGEABLE,
            )
        return response
