"""The only room that knows ONNX Runtime: a model's bytes in, arrays out."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from types import MappingProxyType
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]  # ships no types

from harken_server.execution import heap
from harken_server.execution.collate import PaddedBatch

SENTENCE: Final = "sentence_embedding"
TOKENS: Final = "token_embeddings"

_SMALLEST: Final = PaddedBatch(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64), (1,))

# What ONNX Runtime says when an arena or its limit, the C library, CUDA or cuBLAS has no memory left. There is no code.
_NO_MEMORY: Final = re.compile(
    r"Failed to allocate memory|is smaller than requested bytes|bad_alloc|bad allocation|out of memory|ALLOC_FAILED"
)
_SAME_AS_REQUESTED: Final = 1

Device = Literal["cpu", "cuda"]
Outputs = Mapping[str, npt.NDArray[np.float32]]


class EngineError(Exception):
    """A run that failed. The message is ONNX Runtime's, for the log only."""


class OutOfMemory(EngineError):
    """A run for which there was not enough memory. The session is sound, and a smaller batch may run."""


class DeviceUnavailable(Exception):
    """The device that was asked for cannot be used. One line, for a person."""


class Halt:
    """Ends runs from another thread: the one that has it now, after its present operator, and all that get it later."""

    def __init__(self) -> None:
        self.options: Final = ort.RunOptions()
        self.is_set = False

    def set(self) -> None:
        """End them, with EngineError."""
        self.is_set = True
        self.options.terminate = True


class Runner(Protocol):
    """What a lane needs of an engine."""

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        """Compute the named outputs: sentence_embedding float32 [B, H], token_embeddings float32 [B, L, H].

        Raises OutOfMemory, or else EngineError.
        """
        ...

    def shrink(self) -> None:
        """Give memory that large batches left behind back to the system. Raises EngineError."""
        ...


@dataclass(frozen=True)
class DeviceOptions:
    """How a session uses its device."""

    device: Device
    device_id: int = 0
    threads: int = 1
    """Intra-op threads of one run, on the CPU."""
    memory_limit_bytes: int = 0
    """Of the arena; 0 is no limit of its own. On the CPU one arena and its limit serve every session."""
    arena_extend: Literal["same-as-requested", "next-power-of-two"] = "same-as-requested"
    cpu_arena: bool = True
    """Whether what a run has freed on the CPU is kept for the next one."""


class Engine:
    """One session. `run` may be called from several lanes at once: it has no state between calls."""

    def __init__(
        self, model: bytes, options: DeviceOptions, weights: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        """Load an ONNX graph. `weights`: the contents of the files that it names as its initializers'.

        Raises EngineError if it is none, or names another file; DeviceUnavailable if CUDA does not work here.
        """
        self._device: Final = options.device
        self._device_id: Final = options.device_id if options.device == "cuda" else 0
        heap.map_large_blocks()
        session = ort.SessionOptions()
        session.intra_op_num_threads = options.threads
        session.inter_op_num_threads = 1
        # A lane that is idle gives its core to others: the tokenizer and the event loop share the cores.
        session.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A pattern is kept for each shape that ever ran, and here nearly each batch has its own.
        session.enable_mem_pattern = False
        # A graph may name files with its weights, which no hash covers: they are looked for where there is nothing.
        session.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        if weights:
            sizes_bytes = [len(content) for content in weights.values()]
            session.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes_bytes)
        session.enable_cpu_mem_arena = options.cpu_arena
        # Its lines are no JSON, and may hold token ids; what matters comes as an exception.
        session.log_severity_level = 4
        providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
        if options.device == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", _cuda_options(options)))
        elif options.memory_limit_bytes and options.cpu_arena:
            _limit_cpu_arena(options.memory_limit_bytes)
            session.add_session_config_entry("session.use_env_allocators", "1")
        try:
            if options.device == "cuda":
                ort.preload_dlls()
            self._session: Final = ort.InferenceSession(model, session, providers=providers)
        except Exception as error:
            if options.device == "cuda":
                raise DeviceUnavailable(f"CUDA: {_first_line(error)}") from error
            raise EngineError(_first_line(error)) from error
        if options.device == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            # Asked for CUDA, ONNX Runtime falls back to the CPU without an error.
            raise DeviceUnavailable(
                "CUDA: ONNX Runtime found no GPU that it can use, or not its CUDA and cuDNN libraries"
            )

    def run(self, batch: PaddedBatch, outputs: Sequence[str], halt: Halt | None = None) -> Outputs:
        """See Runner. One path on every provider: inputs go to the device, outputs come back to the host."""
        return self._run(batch, outputs, halt.options if halt else None)

    @property
    def device(self) -> Device:
        """Where it runs."""
        return self._device

    def shrink(self) -> None:
        """See Runner. ONNX Runtime's arenas only ever grow, but for a run that asks them to let go at its end."""
        options = ort.RunOptions()
        arena = "gpu" if self._device == "cuda" else "cpu"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"{arena}:{self._device_id}")
        self._run(_SMALLEST, (SENTENCE,), options)
        if self._device == "cpu":
            heap.trim()

    def _run(self, batch: PaddedBatch, outputs: Sequence[str], options: ort.RunOptions | None) -> Outputs:
        try:
            # On a GPU too it copies the inputs there and the outputs back; I/O binding is twice the work in Python.
            feeds = {"input_ids": batch.ids, "attention_mask": batch.mask}
            return dict(zip(outputs, self._session.run(outputs, feeds, options), strict=True))
        except Exception as error:
            short = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))
            raise (OutOfMemory if short else EngineError)(_first_line(error)) from error


def check_installation() -> None:
    """Raises DeviceUnavailable where both runtime wheels are installed: they overwrite each other in one folder."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(f"{name} {distribution(name).version}")
        except PackageNotFoundError:
            continue
    if len(installed) > 1:
        raise DeviceUnavailable(
            f"{' and '.join(installed)} are both installed and overwrite each other; uninstall both, then install one"
        )


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def cuda_is_built_in() -> bool:
    """Whether the installed wheel has the CUDA execution provider; a GPU is another question."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


@cache
def _limit_cpu_arena(limit_bytes: int) -> None:
    """Make the arena that sessions with `use_env_allocators` share. The last limit that was given holds."""
    arena = ort.OrtArenaCfg({"max_mem": limit_bytes, "arena_extend_strategy": _SAME_AS_REQUESTED})
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, arena)


def _cuda_options(options: DeviceOptions) -> dict[str, str]:
    extend = {"same-as-requested": "kSameAsRequested", "next-power-of-two": "kNextPowerOfTwo"}
    cuda = {"device_id": str(options.device_id), "arena_extend_strategy": extend[options.arena_extend]}
    if options.memory_limit_bytes:
        cuda["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return cuda


def _first_line(error: Exception) -> str:
    """What failed and where, without the values: they may be a caller's token ids."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.split(" Status Message:")[0]
