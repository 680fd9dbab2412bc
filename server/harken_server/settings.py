"""Every setting of the server, in one place.

A value comes from the command line, else from the environment (`HARKEN_` and the name in capitals), else from a
TOML file, else from the default here. The table in docs/settings.md is made from this file.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX: Final = "HARKEN_"
MIB: Final = 1 << 20

Port = Annotated[int, Field(ge=0, le=65535)]


class BadSettings(Exception):
    """A setting that cannot be used. The message is one line and names the setting, the value and the limit."""


class Settings(BaseSettings):
    """Serve transformer encoders over gRPC and HTTP, batching variable-length requests by length and measured cost."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    config: Path | None = Field(None, description="A TOML file with settings, named as here: grpc_port = 8001.")
    models: Path = Field(Path("models"), description="Folder of the bundles, NAME/VERSION/ each; or a single bundle.")
    model_name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$",
        description="Where `models` is itself a bundle (as KServe mounts it): its name; the version is 1. Empty: the "
        "name that the bundle gives itself.",
    )
    bundle_digest: str = Field(
        "",
        description="The bundles that may be served, as sha256:HEX of their bundle.json, which `harken-export` tells "
        "and which holds the hash of every other file; several with commas between. Empty: whatever lies in `models`.",
    )
    model_control: bool = Field(
        False,
        description="Whether clients may load and unload models of the folder (RepositoryModelLoad and -Unload).",
    )
    remote_settings: bool = Field(
        False,
        description="Whether clients may read these settings, and change log_level while the server runs "
        "(harken.v1.Admin/Settings, `harken settings`). With api_keys it needs an admin's.",
    )
    watch_models_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Seconds between looks into `models`: new versions are loaded, those that are gone are unloaded, "
        "and the files NAME/default are read. 0: only at SIGHUP.",
    )
    keep_versions: int = Field(
        0,
        ge=0,
        description="Most versions of a model that are served at once: the highest, and beside them the one that "
        "NAME/default names. 0: all that are in the folder.",
    )
    listen: str = Field(
        "127.0.0.1",
        description="Address to listen on, on every port. 0.0.0.0 is every IPv4 interface, :: every one.",
    )
    grpc_port: Port = Field(8001, description="Port of the gRPC services. 0 takes any free one.")
    http: bool = Field(
        True, description="Whether the HTTP edge is served: OpenAI's, TEI's and the Open Inference form."
    )
    http_port: Port = Field(8000, description="Port of the HTTP edge. 0 takes any free one.")
    metrics_port: Port = Field(8002, description="Port of Prometheus' /metrics over HTTP. 0 takes any free one.")
    health_port: Port = Field(
        8003,
        description="Port of grpc.health.v1 alone, in plain text and without keys, as probes speak: the empty name "
        "is whether requests are taken, `liveness` whether the process is well. 0 takes any free one.",
    )
    tls_certificate: str = Field(
        "",
        description="PEM file with the server's certificate and those between it and its CA, for TLS with gRPC "
        "and HTTP. Read again when it changes, as the two below. Empty: plain text.",
    )
    tls_key: str = Field("", description="PEM file with the private key of tls_certificate, not encrypted.")
    tls_client_ca: str = Field(
        "",
        description="PEM file with the CAs of the clients' certificates: nobody connects to the gRPC or the HTTP port "
        "without one (mTLS). Empty: clients need none.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the models run. auto takes CUDA where it works, else the CPU."
    )
    device_id: int = Field(0, ge=0, description="Which GPU, where there are several.")
    lanes: int = Field(
        0, ge=0, le=1024,
        description="Batches that run at the same time. 0: one for each usable core on the CPU, one on a GPU.",
    )  # fmt: skip
    wide_lane: bool = Field(
        True,
        description="On the CPU: one more lane, which runs a sequence on all cores while nothing else waits. It takes "
        "the memory of the weights again; where it is not clearly faster it is dropped at the start.",
    )
    lane_sessions: Literal["auto", "own", "shared"] = Field(
        "auto",
        description="On the CPU: own gives each lane a session of its own, which takes the memory of the weights "
        "again; in a shared one, buffers wander between the cores' caches. auto: own while the weights of all models "
        "and lanes together fit into a quarter of the free memory, and cpu_memory_limit_bytes is not set.",
    )
    max_batch_sequences: int = Field(64, ge=1, le=65536, description="Most sequences in a batch. 1 turns batching off.")
    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="Most tokens in a batch, with padding; a longer sequence runs alone. 0: 1024 on CPU, 32768 on GPU.",
    )
    bulk_batch_max_s: float = Field(
        0.02,
        gt=0,
        le=60,
        description="Longest batch with bulk work in it, in predicted seconds, while interactive calls came in the "
        "last second: so long may one of them have to wait for a lane. A longer sequence runs alone.",
    )
    api_keys: str = Field(
        "",
        description="TOML file of the digests of API keys (docs/security.md). With it every call needs one, as "
        "`authorization: Bearer KEY`, which says whose it is, and what and how much it may use. Read again when it "
        "changes. Empty: whoever connects may call.",
    )
    trust_tenants: bool = Field(
        False,
        description="Whether the metadata (in HTTP the header) harken-tenant says who asks. Tenants share the lanes "
        "fairly, in tokens, and never each other's results. Not read where api_keys is set. Only behind a proxy that "
        "sets it: who may name any tenant may take many shares. The first 64 names have shares of their own.",
    )
    tenant_weights: str = Field(
        "",
        description="How large the tenants' shares are, as NAME=WEIGHT,NAME=WEIGHT; all others have weight 1. "
        "These names take places of the 64 that have shares of their own.",
    )
    share_identical: bool = Field(
        True,
        description="Whether identical sequences that wait at the same time, of one tenant, are computed once.",
    )
    result_cache_bytes: int = Field(
        0,
        ge=0,
        description="Memory for vectors that were computed, for whoever of the same tenant sends the same tokens "
        "again. 0: none are kept.",
    )
    memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="Most memory that running batches may need, beside the weights. 0: half of what is free (on CUDA: "
        "on the GPU, or under its limit) once the models are loaded; the rest is for messages, answers and neighbours.",
    )
    attend: bool = Field(
        True, description="Whether Attend is served: attention maps, of models whose bundles have an attention graph."
    )
    attend_memory_bytes: int = Field(
        0,
        ge=0,
        description="Most memory that Attends may need, beside the batches and the graph's weights: the one that runs "
        "takes twice layers x heads x tokens x tokens x 4 bytes, the answers of others wait to be read. A text that "
        "needs more is refused. 0: a quarter of the batches' budget.",
    )
    attend_idle_s: float = Field(
        300.0,
        ge=0,
        le=86400,
        description="An attention graph is loaded, with weights of its own in memory, when the first Attend asks, and "
        "let go of after so many seconds without one. 0: never.",
    )
    cpu_memory_limit_bytes: int = Field(
        0,
        ge=0,
        description="Most memory that ONNX Runtime's CPU arena may hold: batches, and a packed copy of the weights. "
        "A batch that finds no more is split. 0: no limit of its own.",
    )
    gpu_memory_limit_bytes: int = Field(
        0,
        ge=0,
        description="Most device memory that ONNX Runtime's CUDA arena may hold. 0: no limit of its own.",
    )
    gpu_arena_extend: Literal["same-as-requested", "next-power-of-two"] = Field(
        "same-as-requested",
        description="How the CUDA arena grows: by what is asked (least memory) or by doubling (fewest allocations).",
    )
    max_backlog_sequences: int = Field(
        8192, ge=1, description="Most sequences that may wait; the next call is refused at once."
    )
    max_backlog_tokens: int = Field(
        1 << 20, ge=1, description="Most tokens that may wait; the next call is refused at once."
    )
    max_inputs: int = Field(1024, ge=1, description="Most inputs in one call.")
    max_message_bytes: int = Field(
        16 * MIB, ge=1024, le=512 * MIB, description="Largest request message, and largest answer."
    )
    max_text_bytes: int = Field(MIB // 4, ge=1, description="Largest single text, in bytes of UTF-8.")
    max_tokenize_bytes: int = Field(
        64 * MIB,
        ge=1,
        description="Most bytes of text that may wait for the tokenizer; the next call is refused at once.",
    )
    max_stream_unanswered: int = Field(
        256,
        ge=1,
        le=65536,
        description="A stream is not read further while so many inputs are unanswered (fewer, if answers are large).",
    )
    max_unsent_bytes: int = Field(
        256 * MIB,
        ge=1024,
        description="Most bytes of answers that may wait for their readers; then calls are refused.",
    )
    max_connections: int = Field(1024, ge=1, description="Most open connections, gRPC's and HTTP's each.")
    max_streams_per_connection: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most calls and streams at a time over one gRPC connection; a client's further ones wait in it.",
    )
    max_connection_idle_s: float = Field(
        3600.0,
        ge=0,
        le=86400,
        description="A gRPC connection over which nothing is under way for so many seconds is closed; clients make "
        "another when they need one. 0: never.",
    )
    max_request_s: float = Field(
        30.0,
        gt=0,
        le=86400,
        description="Cap on the time of every call, and of every single input of a stream, in seconds.",
    )
    stall_factor: float = Field(
        20.0,
        gt=1,
        le=10000,
        description="A batch that runs for so many times its predicted time, and for stall_min_s, has stalled: what "
        "it holds fails, and the engine is told to end it; a quarter of that time later another thread takes its lane.",
    )
    stall_min_s: float = Field(
        10.0, gt=0, le=86400, description="No batch has stalled before it ran for so many seconds."
    )
    tokenize_threads: int = Field(1, ge=1, le=256, description="Threads that turn text into tokens.")
    drain_delay_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="After SIGTERM: seconds in which calls are still accepted while health says NOT_SERVING.",
    )
    state_dir: Path = Field(
        Path("~/.local/state/harken"),
        description="Folder in which measured costs are kept for the next start. Not writable: they are measured anew.",
    )
    warmup_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds at the start for running a grid of batch shapes, which warms up and measures costs. "
        "A shape that has begun is finished.",
    )
    max_connection_age_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="After so many seconds (give or take 10 %) a gRPC connection takes no new calls, and a stream of "
        "inputs answers what it has read and ends as UNAVAILABLE, to be resumed. Behind a headless service a client "
        "resolves the name again only when it loses a connection: without a bound it never meets new pods. What is "
        "under way is finished: the grace is the age again and max_request_s. 0: none.",
    )
    min_ping_interval_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Keepalive pings of clients are tolerated down to this interval, in seconds.",
    )
    debug_batches: int = Field(
        256,
        ge=0,
        le=4096,
        description="How many of the last batches are kept to be explained (`harken explain-batches`). "
        "0: none, and the call is refused.",
    )
    load_reports: bool = Field(
        True,
        description="Whether the trailers of unary gRPC answers tell how loaded the server is (ORCA), for clients and "
        "proxies that balance by it.",
    )
    studio: bool = Field(
        False,
        description="Whether a page for people is served at `/` of the HTTP port (docs/studio.md): what models make of "
        "texts, and the server at work.",
    )
    reflection: bool = Field(True, description="Whether gRPC reflection is served.")
    so_reuseport: bool = Field(
        False,
        description="Let a second server bind the same port; the kernel then splits the connections between them.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Form of the log lines on stderr. auto: console on a terminal, else JSON."
    )
    access_log_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the calls that have a line of their own in the log, at level info, when they end. At "
        "level debug all have one.",
    )
    trace_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^/\s@]+)?$",
        description="Where traces are sent, over OTLP with gRPC: http://HOST:4317 of a collector, or https. Needs "
        "`harken[tracing]`. The rest is said by OpenTelemetry's own variables (docs/observability.md). Empty: nowhere.",
    )
    trace_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the requests that are traced, of those whose caller is in no trace; for all others its "
        "`traceparent` says it.",
    )

    @field_validator("tenant_weights")
    @classmethod
    def _are_weights(cls, value: str) -> str:
        _weights(value)
        return value

    @field_validator("bundle_digest")
    @classmethod
    def _are_digests(cls, value: str) -> str:
        for entry in filter(None, value.split(",")):
            if not re.fullmatch(r"sha256:[0-9a-f]{64}", entry.strip()):
                raise ValueError(f"{entry.strip()!r} is no sha256: with 64 digits of 0-9a-f")
        return value

    @property
    def digests(self) -> frozenset[str]:
        """`bundle_digest`, in hex."""
        return frozenset(re.findall(r"[0-9a-f]{64}", self.bundle_digest))

    @property
    def weights_by_tenant(self) -> dict[str, float]:
        """`tenant_weights`, by name."""
        return _weights(self.tenant_weights)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes: no hidden source."""
        return (init_settings,)


def _weights(text: str) -> dict[str, float]:
    """Raises ValueError if it is no NAME=WEIGHT,NAME=WEIGHT."""
    weights: dict[str, float] = {}
    for entry in filter(None, text.split(",")):
        name, _, weight = entry.strip().rpartition("=")
        if not re.fullmatch(r"[!-~]{1,64}", name) or "=" in name or name in weights:
            raise ValueError(f"each entry is NAME=WEIGHT, each name given once, which {entry.strip()!r} is not")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise ValueError(f"the weight of {name} is a number, not {weight!r}") from None
        if not 0.001 <= weights[name] <= 1000:
            raise ValueError(f"the weight of {name} is between 0.001 and 1000, not {weight}")
    if len(weights) > 64:
        raise ValueError(f"at most 64 tenants have weights, not {len(weights)}")
    return weights


def markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Of `harken-server`. A value comes from the command line (`--grpc-port 9001`), else from the environment",
        "(`HARKEN_GRPC_PORT=9001`), else from the TOML file that `--config` names (`grpc_port = 9001`), else it is the",
        "default. An unknown name is an error in all three. What Kubernetes injects beside a Service called harken",
        "(`HARKEN_SERVICE_HOST`, `HARKEN_PORT=tcp://...` and the like) is never a setting, and is ignored.",
        "",
        "This page is made from `server/harken_server/settings.py` by `make settings-doc`.",
        "",
        "| setting | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
