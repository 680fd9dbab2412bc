"""Files that an operator, or whoever made a bundle, puts there: each is read, or refused by the error of its kind."""

import json
import tempfile
from pathlib import Path
from typing import Final

from fuzz.edges import SEEDS
from fuzz.edits import edited
from harken_server.models.bundle import MANIFEST, BundleError, Found, name_of, read_bundle
from harken_server.models.repository import PIN, pinned_version
from harken_server.models.tokenizer import Reading, Tokenizer
from harken_server.rpc.api_keys import SETTING, ApiKeys
from harken_server.rpc.files import BadFile

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="harken-fuzz-")
_TINY: Final = Path(_FOLDER.name) / "tiny"
_BUNDLE: Final = _TINY / "1"
_BUNDLE.mkdir(parents=True)
(_BUNDLE / "model.onnx").write_bytes(b"graph")
_KEYS: Final = Path(_FOLDER.name) / "keys.toml"
_KEYS.touch()

_MANIFEST: Final = json.loads((SEEDS / "manifest" / "whole").read_bytes())
_KINDS: Final = ("bpe", "unigram", "word_level", "word_piece")
_TOKENIZERS: Final = [json.loads((SEEDS / "tokenizer" / kind).read_bytes()) for kind in _KINDS]
_VOCABULARY: Final = 1000
_TEXTS: Final = ("", "a", "a word of text", "\u0416\U0001f600 e\u0301", "a " * 200)
_READINGS: Final = (Reading(), Reading("end", places=True), Reading("chunks", overlap_tokens=1))


def manifest(data: bytes) -> None:
    """bundle.json; after a zero byte, edits of a right one."""
    (_BUNDLE / MANIFEST).write_bytes(edited(_MANIFEST, data[1:]) if data[:1] == b"\0" else data)
    for read in (lambda: read_bundle(Found(_BUNDLE, "tiny", 1)), lambda: name_of(_BUNDLE)):
        try:
            read()
        except BundleError as error:
            _one_line(error)


def tokenizer(data: bytes) -> None:
    """tokenizer.json; after a byte below 4, edits of a right one.

    What is accepted makes ids that the model knows, and no more than it takes.
    """
    if data and data[0] < len(_TOKENIZERS):
        data = edited(_TOKENIZERS[data[0]], data[1:])
    try:
        made = Tokenizer(data, 16, _VOCABULARY)
    except BundleError as error:
        _one_line(error)
        return
    for reading in _READINGS:
        for tokens, *_ in made.encode(_TEXTS, reading, 10_000):
            assert len(tokens.ids) <= 16, len(tokens.ids)
            assert not len(tokens.ids) or tokens.ids.max() < _VOCABULARY, tokens.ids.max()


def pin(data: bytes) -> None:
    """NAME/default."""
    (_TINY / PIN).write_bytes(data)
    try:
        version = pinned_version(_TINY.parent, "tiny")
    except BundleError as error:
        _one_line(error)
    else:
        assert version is not None
        assert version > 0


def keys(data: bytes) -> None:
    """The file of API keys: read at the start, or anew while it is in use."""
    _KEYS.write_bytes(b'[[keys]]\nname = "old"\nsha256 = "%s"\n' % (b"0" * 64))
    used = ApiKeys(str(_KEYS), lambda: 0.0)
    _KEYS.write_bytes(data)
    for use in (lambda: ApiKeys(str(_KEYS), lambda: 0.0), lambda: used.use({SETTING: data})):
        try:
            use()
        except BadFile as error:
            _one_line(error)


def _one_line(error: Exception) -> None:
    message = str(error)
    assert message.splitlines() == [message], message
