"""Measured cost surfaces, kept from one start to the next under a fingerprint of everything they depend on."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from harken_server.execution.calibration import Seconds
from harken_server.execution.peaks import Peaks

log = structlog.get_logger()

Fingerprint = Mapping[str, str]

BESIDE_BUNDLE: Final = "surface.json"
WIDE_BESIDE_BUNDLE: Final = "surface-wide.json"

_LIMIT_BYTES: Final = 1 << 20


class DamagedSurface(Exception):
    """A file that is no surface. One line."""


@dataclass(frozen=True)
class Surface:
    """What batches cost, by (batch, padded length)."""

    seconds: Seconds
    peaks: Peaks
    """Empty where memory could not be measured."""


class Surfaces:
    """The files of one folder. Nothing here stops a server: what cannot be read or written is said, and measured."""

    def __init__(self, folder: Path) -> None:
        self._folder: Final = folder.expanduser() / "surfaces"

    def find(self, fingerprint: Fingerprint, beside: Path) -> Surface | None:
        """The surface `beside` the bundle, or else the kept one, if it was measured under this very fingerprint."""
        for path in (beside, self._path(fingerprint)):
            try:
                if not path.exists():
                    continue
                found, surface = _read(path)
            except (OSError, DamagedSurface) as error:
                log.warning("the cost surface cannot be read, so it is measured", path=str(path), why=str(error))
                continue
            if found == dict(fingerprint):
                return surface
            differing = sorted(key for key, value in fingerprint.items() if found.get(key) != value)
            log.info("the cost surface is from elsewhere, so it is measured", path=str(path), differing=differing)
        return None

    def keep(self, fingerprint: Fingerprint, surface: Surface) -> None:
        """Write the surface for the next start; whole or not at all."""
        path = self._path(fingerprint)
        content = {
            "fingerprint": dict(fingerprint),
            "seconds": [[batch, length, took_s] for (batch, length), took_s in sorted(surface.seconds.items())],
            "peak_bytes": [[batch, length, peak] for (batch, length), peak in sorted(surface.peaks.items())],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(file.name, path)
        except OSError as error:
            log.warning("the cost surface cannot be kept, so the next start measures again", why=str(error))

    def _path(self, fingerprint: Fingerprint) -> Path:
        digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def _read(path: Path) -> tuple[dict[str, str], Surface]:
    with path.open("rb") as file:
        raw = file.read(_LIMIT_BYTES + 1)
    if len(raw) > _LIMIT_BYTES:
        raise DamagedSurface(f"larger than {_LIMIT_BYTES} bytes")
    try:
        content = json.loads(raw)
        fingerprint = {str(key): str(value) for key, value in content["fingerprint"].items()}
        seconds = {(int(batch), int(length)): float(took_s) for batch, length, took_s in content["seconds"]}
        # A file from before memory was measured has none.
        peaks = {(int(batch), int(length)): int(peak) for batch, length, peak in content.get("peak_bytes", [])}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedSurface(f"not a surface: {type(error).__name__}") from error
    sound = all(b > 0 and n > 0 and math.isfinite(s) and s > 0.0 for (b, n), s in seconds.items())
    if not seconds or not sound:
        raise DamagedSurface("not a surface: it needs cells above 0 s")
    if not all(b > 0 and n > 0 and peak >= 0 for (b, n), peak in peaks.items()):
        raise DamagedSurface("not a surface: a batch takes no less than 0 bytes")
    return fingerprint, Surface(seconds, peaks)
