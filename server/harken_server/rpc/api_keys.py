"""API keys: who calls, what they may use, and how much of it at a time. Only digests of keys are ever kept."""

import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from harken_server.errors import AdminOnly, KeyLimit, ModelForbidden, Unauthenticated
from harken_server.rpc.files import BadFile, Contents, read
from harken_server.rpc.tenants import MOST_TENANTS, Tenants
from harken_server.scheduling.waiting import ANYBODY, Tenant

AUTHORIZATION: Final = "authorization"
"""The metadata, or the header, that a key comes in: `Bearer KEY`."""

SETTING: Final = "api_keys"

# 128 random bits in base64; what is shorter can be guessed, whatever digest the file has of it.
_LEAST_CHARACTERS: Final = 22
# Calls end within milliseconds; when one will, nobody knows.
_IN_FLIGHT_RETRY_S: Final = 0.1
# Beyond any limit; a float still holds it.
_MOST: Final = 1 << 53

_Name = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]


class ApiKey(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: _Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: _Name | None = None
    """None: one of its own, by its name."""
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Of its tenant."""
    models: Annotated[list[str], Field(min_length=1)] | None = None
    """None: all."""
    requests_in_flight: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    tokens_per_s: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    admin: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[ApiKey]
    """None lets nobody in."""


class Caller:
    """A key in use. Belongs to the event loop's thread."""

    def __init__(self, key: ApiKey, tenant: Tenant, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._in_flight = 0
        # What it may still spend, up to a second's worth; below 0 after a call that was larger than that.
        self._tokens = float(key.tokens_per_s or 0)
        self._counted_s = clock()
        self.revoked = False
        self.now_is(key, tenant)

    def now_is(self, key: ApiKey, tenant: Tenant) -> None:
        """The file's entry has changed; what is in flight, and what was spent, has not."""
        self._key = key
        self.tenant = tenant

    def check_admin(self) -> None:
        """Raises AdminOnly."""
        if not self._key.admin:
            raise AdminOnly(self._key.name)

    def check(self, model: str) -> None:
        """See Account. Raises Unauthenticated, ModelForbidden, KeyLimit."""
        key = self._key
        if self.revoked:
            raise Unauthenticated(given=True)
        if key.models is not None and model not in key.models:
            raise ModelForbidden(key.name, model)
        if key.tokens_per_s is not None and self._left(key.tokens_per_s) < 1:
            raise KeyLimit(key.name, "tokens a second", key.tokens_per_s, (1 - self._tokens) / key.tokens_per_s)

    def spend(self, tokens: int) -> None:
        """See Account. May leave a debt, which later calls wait for: so no call is too large for ever."""
        # What nothing limits is no debt to a limit that the file gets later.
        if self._key.tokens_per_s is not None:
            self._tokens -= tokens

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A call, or a stream, is in flight. Raises KeyLimit."""
        most = self._key.requests_in_flight
        if most is not None and self._in_flight >= most:
            raise KeyLimit(self._key.name, "requests in flight", most, _IN_FLIGHT_RETRY_S)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _left(self, tokens_per_s: int) -> float:
        now_s = self._clock()
        earned = (now_s - self._counted_s) * tokens_per_s
        self._tokens, self._counted_s = min(self._tokens + earned, float(tokens_per_s)), now_s
        return self._tokens


class ApiKeys:
    """The keys of the file as it is now. Belongs to the event loop's thread."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        """Raises BadFile."""
        self._clock: Final = clock
        self._callers: dict[str, Caller] = {}
        self.paths: Final = {SETTING: path}
        self.contents: Final = read(self.paths)
        self.use(self.contents)

    def use(self, contents: Contents) -> None:
        """Take what the file holds now. Raises BadFile if it is not right; then nothing has changed."""
        where = f"{SETTING}: {self.paths[SETTING]}"
        keys = _parse(contents[SETTING], where)
        tenants = _tenants(keys, where)
        callers: dict[str, Caller] = {}
        for key in keys:
            tenant = tenants.find(key.tenant or key.name)
            caller = self._callers.pop(key.sha256, None) or Caller(key, tenant, self._clock)
            caller.now_is(key, tenant)
            callers[key.sha256] = caller
        # Streams that they opened go on to ask.
        for gone in self._callers.values():
            gone.revoked = True
        self._callers = callers

    def find(self, digest: str) -> Caller:
        """Whose key has this digest; "" is of no key. Raises Unauthenticated."""
        caller = self._callers.get(digest)
        if caller is None:
            raise Unauthenticated(given=bool(digest))
        return caller


def digest_of(authorization: str) -> str:
    """Of the key in `Bearer KEY`, in hex; empty where there is none. What is no key has one that nobody has."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return ""
    return sha256(key.strip().encode()).hexdigest() if len(key.strip()) >= _LEAST_CHARACTERS else "short"


def _parse(content: bytes, where: str) -> list[ApiKey]:
    try:
        keys = _File.model_validate(tomllib.loads(content.decode())).keys
    except ValidationError as error:
        raise BadFile(f"{where}: {_sentence(error.errors()[0])}") from None
    except UnicodeDecodeError:
        raise BadFile(f"{where}: is not UTF-8") from None
    # tomllib lets numbers of too many digits, and tables too deep for it, fail by errors that are not its own.
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{where}: is no TOML: {error}") from None
    for name, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        twice = next((index for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise BadFile(f"{where}: keys[{twice}].{name}: another key has it already")
    return keys


def _sentence(problem: ErrorDetails) -> str:
    """Without the value but where it is a number: somebody may have put a key where its digest belongs."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in problem["loc"]).lstrip(".")
    value = problem["input"]
    shown = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _MOST)
    return f"{place}: {problem['msg']}" + (f", not {value}" if shown else "")


def _name(part: str) -> str:
    """On one line: a name that is none of ours may be any text. As long as a key it may be one."""
    if len(part) >= _LEAST_CHARACTERS:
        return f"(a name of {len(part)} characters)"
    return part if part.isidentifier() else repr(part)


def _tenants(keys: list[ApiKey], where: str) -> Tenants:
    weights: dict[str, float] = {}
    for index, key in enumerate(keys):
        name = key.tenant or key.name
        if weights.setdefault(name, key.weight) != key.weight:
            raise BadFile(
                f"{where}: keys[{index}].weight: is {key.weight}, and {weights[name]} in another key of {name}"
            )
    own = dict(list(weights.items())[:MOST_TENANTS])
    for name in weights.keys() - own.keys():
        if weights[name] != ANYBODY.weight:
            raise BadFile(f"{where}: {name} has weight {weights[name]}, but only the first {MOST_TENANTS} tenants have")
    return Tenants(True, own)
