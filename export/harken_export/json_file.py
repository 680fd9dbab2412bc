"""JSON that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointRefused


def read_json(path: Path) -> Any:
    """Whatever the file holds. Raises CheckpointRefused if it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointRefused(f"{path.parent} has no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(f"{path} is not JSON: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises CheckpointRefused if the file is missing or no JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointRefused(f"{path} is not a JSON object")
    return content
