"""Bytes to messages, with an answer to why not.

gRPC's own deserialiser answers UNKNOWN with a Python error; so handlers take raw bytes and parse here.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple, TypeVar, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from harken_server.errors import InvalidRequest, NotProtobuf, NotUtf8, Problem, TooMany, TooManyBytes

M = TypeVar("M", bound=Message)

_MOST_PROBLEMS: Final = 16
# A sender may repeat a field that is not repeated; nobody does it often.
_OTHER_FIELDS: Final = 64
# How far over its limit a count is still told exactly.
_COUNTED_TIMES: Final = 8
# Messages below this size are parsed whatever they hold.
_HARMLESS_BYTES: Final = 2048


class Repeated(NamedTuple):
    """A repeated field of a message, how many elements it may have, and what repeats within each of them."""

    number: int
    name: str
    limit: int
    inside: tuple["Repeated", ...] = ()


def parse(kind: type[M], raw: bytes, limit_bytes: int, repeated: Sequence[Repeated] = ()) -> M:
    """The message that `raw` holds. Raises InvalidRequest, which names the fields whose text is not UTF-8."""
    if len(raw) > limit_bytes:
        raise InvalidRequest((TooManyBytes("", len(raw), limit_bytes),))
    if repeated and len(raw) > _HARMLESS_BYTES:
        _limit_elements(raw, 0, len(raw), repeated, "")
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise InvalidRequest(_diagnose(kind, raw)) from None
    return message


def _limit_elements(raw: bytes, position: int, end: int, repeated: Sequence[Repeated], path: str) -> None:
    """Raises InvalidRequest if any of these fields has too many elements in the message from `position` to `end`.

    Looks at the bytes alone: each element costs a client two bytes, and the parser an object.
    """
    counts = dict.fromkeys((field.number for field in repeated), 0)
    limits = {field.number: field for field in repeated}
    most = _COUNTED_TIMES * (sum(field.limit for field in repeated) + _OTHER_FIELDS)
    fields = 0
    try:
        while position < end and fields < most:
            tag, position = _varint(raw, position)
            fields += 1
            number, begin = tag >> 3, position
            match tag & 7:
                case 0:
                    _, position = _varint(raw, position)
                case 1:
                    position += 8
                case 2:
                    size_bytes, begin = _varint(raw, position)
                    position = begin + size_bytes
                case 5:
                    position += 4
                case _:
                    return  # no message; the parser says so
            field = limits.get(number)
            if field is None:
                continue
            counts[number] += 1
            if field.inside and counts[number] <= field.limit and position <= end:
                _limit_elements(raw, begin, position, field.inside, f"{path}{field.name}[{counts[number] - 1}].")
    except IndexError:
        return
    unknown = position < end
    over = [field for field in repeated if counts[field.number] > field.limit]
    if unknown and not over:
        over = [max(repeated, key=lambda field: counts[field.number])]
    problems = [
        TooMany(f"{path}{field.name}", max(counts[field.number], field.limit + 1), field.limit, at_least=unknown)
        for field in over
    ]
    if problems:
        raise InvalidRequest(tuple(problems))


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and where the next field begins. Raises IndexError at the end of `raw`."""
    value = shift = 0
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return value, position
        shift += 7


def readable_text(kind: type[Message], raw: bytes, path: tuple[str, ...]) -> str:
    """The text field at `path` of a message that did not parse; empty if it cannot be read either."""
    try:
        value = _twin(_descriptor(kind)).FromString(raw)
        for name in path:
            value = getattr(value, name)
        text: bytes = value  # type: ignore[assignment]  # the twin has bytes where the original has text
        return text.decode()
    except (DecodeError, UnicodeDecodeError):
        return ""


def _diagnose(kind: type[Message], raw: bytes) -> tuple[Problem, ...]:
    descriptor = _descriptor(kind)
    try:
        twin = _twin(_descriptor(kind)).FromString(raw)
    except DecodeError:
        return (NotProtobuf("", descriptor.full_name, len(raw)),)
    problems = [NotUtf8(path) for path, _ in zip(_not_utf8(twin, descriptor), range(_MOST_PROBLEMS), strict=False)]
    return tuple(problems) or (NotProtobuf("", descriptor.full_name, len(raw)),)


def _not_utf8(twin: Message, original: Descriptor, prefix: str = "") -> Iterator[str]:
    for field, value in twin.ListFields():
        original_field = original.fields_by_name[field.name]
        values = value if field.is_repeated else [value]
        for index, element in enumerate(values):
            path = f"{prefix}{field.name}" + (f"[{index}]" if field.is_repeated else "")
            if original_field.message_type is not None and field.message_type is not None:
                yield from _not_utf8(element, original_field.message_type, f"{path}.")
            elif original_field.type == FieldDescriptor.TYPE_STRING:
                try:
                    element.decode()
                except UnicodeDecodeError:
                    yield path


def _descriptor(kind: type[Message]) -> Descriptor:
    # The stubs know that it may be the C implementation's, which is alike.
    return cast(Descriptor, kind.DESCRIPTOR)


@cache
def _twin(descriptor: Descriptor) -> type[Message]:
    """The same message with bytes where the original has text: alike on the wire, and never refused for UTF-8."""
    pool = descriptor_pool.DescriptorPool()
    for dependency in descriptor.file.dependencies:
        _add_with_dependencies(pool, dependency)
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.file.CopyToProto(file)
    for message in file.message_type:
        _text_to_bytes(message)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _text_to_bytes(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type == field.TYPE_STRING:
            field.type = field.TYPE_BYTES
    for nested in message.nested_type:
        # A map's keys may not be bytes; on the wire it is a list of its entries.
        nested.options.ClearField("map_entry")
        _text_to_bytes(nested)


def _add_with_dependencies(pool: descriptor_pool.DescriptorPool, file: FileDescriptor) -> None:
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    for dependency in file.dependencies:
        _add_with_dependencies(pool, dependency)
    pool.Add(copy)
