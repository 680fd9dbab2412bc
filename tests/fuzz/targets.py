"""What is fuzzed, by name: functions that take any bytes, and raise only on a bug."""

from collections.abc import Callable, Mapping
from typing import Final

from fuzz import files, messages, web

Target = Callable[[bytes], None]

TARGETS: Final[Mapping[str, Target]] = {
    "manifest": files.manifest,
    "tokenizer": files.tokenizer,
    "pin": files.pin,
    "keys": files.keys,
    "unary": messages.unary,
    "encode": messages.encode,
    "infer": messages.infer,
    "encode_stream": messages.encode_stream,
    "infer_stream": messages.infer_stream,
    "metadata": messages.metadata,
    "body": web.body,
    "headers": web.headers,
    "connection": web.connection,
}
