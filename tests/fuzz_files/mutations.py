"""Faults in good files: in their bytes, and in what the bytes mean."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

from conversion.files.json_file import is_deeper

_NUMBERS = (0, 1, 2, 3, 7, 31, 32, 64, 255, 256, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53)
_NUMBERS += (2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, -1, -2, -(2**31), -(2**63))
_FLOATS = (0.5, 1.0, 1.5, -0.0, 1e-300, 1e300, 1e308, math.nan, math.inf, -math.inf)
_TEXTS = ("", "a", "32", "1e5", "true", "null", "x" * 5000, "\0", "\n\r", "../../x", "/dev/zero", "▁", " ", "é" * 300)
_TEXTS += ("([a-z]+)+!", "(", "<0x00>", "<0xZZ>", "<unk>", "<s>", "BPE", "\ud83d\ude00", "\u202e", "{{ x }}")


def mutated_bytes(good: bytes, chance: random.Random, head: int | None = None) -> bytes:
    """A few faults, most of them in the head: flipped bits, wild numbers, pieces cut out, doubled, moved or made
    again."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        most = len(data) if head is None or chance.random() < 0.1 else min(len(data), head)
        at, length = chance.randrange(max(1, most)), chance.choice((1, 2, 4, 8, 8, 24, 100))
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                wild = chance.choice(_NUMBERS) if chance.random() < 0.8 else chance.getrandbits(64)
                width = chance.choice((4, 8))
                data[at : at + width] = struct.pack("<Q", wild % 2**64)[:width]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + length] = chance.randbytes(length)
            case _:
                other = chance.randrange(max(1, len(data)))
                data[at : at + length] = data[other : other + length]
    return bytes(data if chance.random() < 0.9 else data[: chance.randrange(len(data) + 1)])


def mutated_json(good: bytes, chance: random.Random) -> bytes:
    """Faults in a JSON file: mostly in its values, some in its text."""
    kind = chance.random()
    if kind < 0.15:
        return mutated_bytes(good, chance)
    value = json.loads(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if is_deeper(value, 100):  # deep enough to be refused; copies of it would be too deep for us
            break
        value = mutated_value(value, chance)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    if kind < 0.3:
        text = _mutated_text(text, chance)
    return text.encode("utf-8", "surrogatepass")


def mutated_value(value: Any, chance: random.Random) -> Any:
    """A parsed value with one fault; the value itself is left as it is."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or chance.random() < 0.01:
        return wild_value(value, chance)
    container, key = chance.choice(places)
    match chance.randrange(8):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[chance.choice((str(key) + "x", "", "a", "architectures", "type"))] = container.pop(key)
        case 2:
            other, place = chance.choice(places)
            container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(container[key])
        case 3:
            for _ in range(chance.choice((1, 1, 2, 30, 70, 200))):
                container[key] = [container[key]] if chance.random() < 0.7 else {"a": container[key]}
        case 4 if isinstance(container, list):
            container.extend(container[:] * chance.choice((1, 1, 3, 40)))
        case 5 if isinstance(container, dict):
            container[str(key) + chance.choice(("", "2", " "))] = wild_value(container[key], chance)
        case _:
            container[key] = wild_value(container[key], chance)
    return value


def wild_value(value: Any, chance: random.Random) -> Any:
    """Something else in the place of a value, often of its own type."""
    own = type(value)
    if own is bool and chance.random() < 0.3:
        return not value
    if own in (int, float) and abs(value) < 1e300 and chance.random() < 0.3:
        return value + chance.choice((-1, 1, 0.5)) if chance.random() < 0.5 else -value
    if own is str and value and chance.random() < 0.3:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(_TEXTS) + value[at + chance.choice((0, 1)) :]
    match chance.randrange(6):
        case 0 | 1:
            return chance.choice(_NUMBERS)
        case 2:
            return chance.choice(_FLOATS)
        case 3:
            return chance.choice(_TEXTS)
        case 4:
            return chance.choice((None, True, False, [], {}, [[]], [None], [0], ["a"], {"a": 1}, {"": {}}, [0] * 3000))
        case _:
            return [chance.choice(_NUMBERS) for _ in range(chance.randrange(5))]


def mutated_protobuf(good: bytes, chance: random.Random) -> bytes:
    """Faults in a serialised message: in its bytes, or in the fields of the outer message and of those inside."""
    if chance.random() < 0.3:
        return mutated_bytes(good, chance)
    fields = _fields(good)
    for _ in range(chance.choice((1, 1, 2, 5))):
        if not fields:
            break
        at = chance.randrange(len(fields)) if chance.random() < 0.6 else max(0, len(fields) - 1 - chance.randrange(3))
        number, wire, value = fields[at]
        match chance.randrange(7):
            case 0:
                del fields[at]
            case 1:
                fields.insert(at, fields[chance.randrange(len(fields))])
            case 2:
                fields[at] = (chance.choice((1, 2, 3, 4, 5, 99, 2**29 - 1)), wire, value)
            case 3:
                fields[at] = (number, chance.choice((0, 1, 2, 3, 4, 5, 6, 7)), value)
            case _ if isinstance(value, bytes) and wire == 2:
                try:
                    inner = mutated_protobuf(value, chance) if len(value) < 4000 else mutated_bytes(value, chance)
                except (IndexError, ValueError):
                    inner = mutated_bytes(value, chance)
                fields[at] = (number, wire, inner)
            case _:
                wild = chance.choice(_NUMBERS) % 2**64
                fields[at] = (number, wire, wild if isinstance(value, int) else struct.pack("<Q", wild)[: len(value)])
    return b"".join(_encoded(*field) for field in fields)


def mutated_safetensors(good: bytes, chance: random.Random) -> bytes:
    """Faults in a safetensors file: in its bytes, the length of its header, what the header says, or the data's
    length."""
    length = int.from_bytes(good[:8], "little")
    if chance.random() < 0.3:
        return mutated_bytes(good, chance, 8 + length)
    header = mutated_json(good[8 : 8 + length], chance)
    claimed = len(header) if chance.random() < 0.9 else chance.choice(_NUMBERS) % 2**64
    data = good[8 + length :]
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.5 else data + bytes(chance.randrange(99))
    return struct.pack("<Q", claimed) + header + data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a value that holds another; of long lists and objects only some, so that the frame is hit as
    well."""
    found: list[tuple[Any, Any]] = []
    level = [value] if isinstance(value, dict | list) else []
    while level:
        inner: list[Any] = []
        for container in level:
            keys = list(container) if isinstance(container, dict) else list(range(len(container)))
            keys = keys if len(keys) <= 40 else keys[:10] + keys[:: len(keys) // 20] + keys[-10:]
            found += [(container, key) for key in dict.fromkeys(keys)]
            inner += [container[key] for key in dict.fromkeys(keys) if isinstance(container[key], dict | list)]
        level = inner
    return found


_TEXT_FAULTS: tuple[Callable[[str, random.Random], str], ...] = (
    lambda text, chance: text.replace(": ", ': {"a": ' * chance.choice((60, 5000)), 1),
    lambda text, chance: text.replace(": ", ": " + "[" * chance.choice((70, 100_000)), 1),
    lambda text, chance: _at_number(text, chance, "1e999"),
    lambda text, chance: _at_number(text, chance, "9" * 5000),
    lambda text, chance: _at_number(text, chance, "-1e-999"),
    lambda text, chance: _at_number(text, chance, "0x10"),
    lambda text, chance: text.replace('"', '"\\ud800', chance.choice((1, 2, 3))),
    lambda text, chance: text.replace('"', '"\ud800', chance.choice((1, 2, 3))),
    lambda text, chance: "\ufeff" + text,
    lambda text, chance: text + chance.choice(("}", "]", "{}", "\0", "//", " " * 100_000)),
    lambda text, chance: text.replace("{", '{"type": 3, ', chance.choice((1, 2, 5))),
    lambda text, chance: text.replace(",", ", ,", 1),
)


def _mutated_text(text: str, chance: random.Random) -> str:
    return chance.choice(_TEXT_FAULTS)(text, chance)


def _at_number(text: str, chance: random.Random, other: str) -> str:
    digits = [i for i, letter in enumerate(text[:100_000]) if letter.isdigit() and text[i - 1] in ": ["]
    if not digits:
        return text
    at = chance.choice(digits)
    stop = at
    while stop < len(text) and text[stop] in "0123456789.e-+":
        stop += 1
    return text[:at] + other + text[stop:]


Field = tuple[int, int, int | bytes]


def _fields(data: bytes) -> list[Field]:
    """Number, wire type and value of each field."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            fields.append((key >> 3, wire, value))
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _varint(data, at)
        if size > len(data) - at or wire not in (1, 2, 5):
            raise ValueError("no message")
        fields.append((key >> 3, wire, data[at : at + size]))
        at += size
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _encoded(number: int, wire: int, value: int | bytes) -> bytes:
    key = _encode_varint(number << 3 | wire)
    if isinstance(value, int):
        return key + _encode_varint(value)
    return key + (_encode_varint(len(value)) if wire == 2 else b"") + value


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
