"""The page that an Attention draws itself on: one HTML document that loads nothing, and runs no script but its own.

Texts and tokens reach it as data only: JSON in which no tag can begin, set as text. The document's own policy allows
its one script and its one style by their hashes, so that nothing else would run even if something got in.
"""

import base64
import hashlib
import html
import json
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harken_client.attention.values import Attention, Pair

_FRAME_BYTES: Final = 4 << 20
"""Of maps within a notebook, which keeps every output; the page that is saved has all of them."""
_FRAME_HEIGHT_PX: Final = 760

_DOCUMENT: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src '{script_hash}'; \
style-src '{style_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Attention</title>
<style>{style}</style>
</head>
<body>
<script type="application/json" id="data">{data}</script>
{body}
<script>{script}</script>
</body>
</html>
"""


def document(attention: Attention, most_bytes: int | None = None) -> str:
    """The page. `most_bytes`: of maps; where they are more, their means over heads are drawn, or else none of them."""
    style, body, script = (_part(name) for name in ("page.css", "page.body.html", "page.js"))
    return _DOCUMENT.format(
        script_hash=_hash(script),
        style_hash=_hash(style),
        style=style,
        body=body,
        script=script,
        data=_json(_data(attention, most_bytes)),
    )


def frame(attention: Attention) -> str:
    """The page within another one: scripts and styles of the two do not meet."""
    whole = html.escape(document(attention, _FRAME_BYTES), quote=True)
    style = f"width:100%;height:{_FRAME_HEIGHT_PX}px;border:0"
    return f'<iframe title="Attention" sandbox="allow-scripts" style="{style}" srcdoc="{whole}"></iframe>'


def _data(attention: Attention, most_bytes: int | None) -> dict[str, Any]:
    maps, mean, note = attention.maps, attention.mean, ""
    if most_bytes is not None and maps is not None and maps.size > most_bytes:
        mean, maps = maps.mean(axis=1), None
        note = "The heads' own maps are too large to be drawn here: .save('attention.html') draws them."
    if most_bytes is not None and mean is not None and mean.size > most_bytes:
        mean, note = None, "The maps are too large to be drawn here: .save('attention.html') draws them."
    return {
        "model": f"{attention.model}/{attention.version}",
        "note": note,
        "truncated": attention.truncated,
        "tokens": _shown(attention),
        "layers": attention.layers,
        "heads": attention.heads,
        "maps": _weights(maps),
        "mean": _weights(mean),
        "rollout": _weights(attention.rollout),
        "entropy": None if attention.entropy is None else np.round(attention.entropy.astype(float), 3).tolist(),
        "pair": _pair(attention.pair),
    }


def _pair(pair: Pair | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {
        "similarity": pair.similarity,
        "tokens": _shown(pair),
        "contributions": _base64(pair.contributions.astype("<f4")),
    }


def _shown(text: Attention | Pair) -> list[str]:
    """What stands for each token."""
    return list(text.tokens) or [str(token) for token in text.ids.tolist()]


def _weights(array: NDArray[np.float32] | None) -> str | None:
    """Weights from 0 to 1 in a byte each, as their square roots: those that are small are to be told apart."""
    return None if array is None else _base64(np.rint(255.0 * np.sqrt(np.clip(array, 0.0, 1.0))).astype(np.uint8))


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _json(value: object) -> str:
    """Within a script element: without a "<" nothing in it ends that, or begins a comment."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _part(name: str) -> str:
    return resources.files("harken_client.attention").joinpath(name).read_text(encoding="utf-8")
