"""A file of API keys, as an operator writes it."""

import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path


@dataclass
class KeyFile:
    """Keys by name; `write` puts their digests into the file."""

    path: Path
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> tuple[str, str]:
        return ("--api-keys", str(self.path))

    def write(self, **entries: str) -> None:
        """Each entry: the name of a key, and what of TOML stands in it beside its name and digest."""
        tables = []
        for name, more in entries.items():
            digest = sha256(self.keys.setdefault(name, secrets.token_urlsafe(32)).encode()).hexdigest()
            tables.append(f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n{more}\n')
        self.path.write_text("\n".join(tables))

    def bearer(self, name: str) -> dict[str, str]:
        """The header, or the metadata, that shows a key."""
        return {"authorization": f"Bearer {self.keys[name]}"}
