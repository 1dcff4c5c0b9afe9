"""JSON files of model folders: bounds, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversion.files.json_fields import JSONFields
from conversion.files.json_file import MOST_DEPTH, read_json_object
from conversion.files.regular_file import read_regular
from tests.cpu_time import cpu_seconds_at_most


class BadFileError(ValueError):
    pass


def read(path: Path, **options: Any) -> dict[str, Any]:
    return read_json_object(path, error=BadFileError, **options)


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no valid JSON"),
    "half": (b'{"a": ', "no valid JSON"),
    "a list": (b"[1]", "holds a JSON list; expected an object"),
    "a number": (b"3", "holds a JSON int"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 .at byte 7"),
    "half of a pair": (b'{"a": "\\ud800"}', "surrogate"),
    "half of a pair in a key": (b'{"\\udfff": 1}', "surrogate"),
    "deep lists": (b'{"a":' + b"[" * 100_000, "levels|no valid JSON"),
    "deep and whole": (b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested in more than 64 levels"),
    "a little too deep": (b'{"a":' * MOST_DEPTH + b"{}" + b"}" * MOST_DEPTH, "nested in more than 64 levels"),
    "5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
    "five million values": (b'{"a": [' + b"0," * 5_000_000 + b"0]}", "more than 4,000,000 values"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    data, message = BROKEN[fault]
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=message) as caught:
        read(path, most=2**24)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_and_marks_that_are_whole_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read(path) == {"a": "😀"}
    nested = b'{"a":' * (MOST_DEPTH - 1) + b"{}" + b"}" * (MOST_DEPTH - 1)
    path.write_bytes(nested)
    assert read(path) == json.loads(nested)


def test_a_missing_file_may_be_allowed(tmp_path: Path) -> None:
    assert read(tmp_path / "none.json", missing_ok=True) == {}
    with pytest.raises(BadFileError, match="there is no file"):
        read(tmp_path / "none.json")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, folder, device])
def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "config.json"
    make(path)
    start = time.monotonic()
    with pytest.raises(BadFileError, match=r"config\.json cannot be read: (a folder|no regular file)"):
        read(path, missing_ok=True)
    assert time.monotonic() - start < 20


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with (
        cpu_seconds_at_most(2.0),
        pytest.raises(BadFileError, match=r"1,099,511,627,776 bytes, where such a file has at most 4,194,304"),
    ):
        read(path)
    with pytest.raises(OSError, match="at most 10"):
        read_regular("/proc/self/maps", most=10)


def fields(**values: Any) -> JSONFields:
    return JSONFields(values, error=BadFileError, source="config.json")


@pytest.mark.parametrize(
    "value", [True, "32", 32.0, 0, -1, 2**31, 10**400, float("nan"), float("inf"), [], {}, [32], {"a": 1}, "x" * 10**6]
)
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(
        BadFileError, match=r"config\.json: n is .*; expected a whole number from 1 to 2147483647"
    ) as caught:
        fields(n=value).whole("n")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, "1.5", float("nan"), float("inf"), -float("inf"), 10**400, [], {}, 0, -2.0])
def test_what_is_no_positive_number_is_refused(value: Any) -> None:
    with pytest.raises(BadFileError, match=r"config\.json: x is .*; expected a number above 0"):
        fields(x=value).number("x", above=0)


def test_values_of_the_right_kind_pass() -> None:
    values = fields(n=32, x=1, y=1e-5, b=False, t="a", l=["a"], e=[1, 2], f=3, null=None, o={"n": 1})
    assert values.whole("n") == 32
    assert values.whole("null", 7) == 7
    assert (values.number("x", above=0), values.number("y", above=0)) == (1.0, 1e-5)
    assert type(values.number("x")) is float
    assert values.flag("b", True) is False
    assert values.flag("null", True) is True
    assert (values.text("t"), values.text("null")) == ("a", None)
    assert (values.texts("l"), values.texts("null")) == (("a",), None)
    assert (values.token_ids("e"), values.token_ids("f"), values.token_ids("null")) == ((1, 2), (3,), ())
    inner = values.object("o")
    assert inner is not None
    assert inner.whole("n") == 1
    with pytest.raises(BadFileError, match=r"config\.json: o\.n is 1; expected"):
        inner.whole("n", least=2)


@pytest.mark.parametrize(
    ("read_field", "expected"),
    [
        (lambda f: f.whole("n"), "n is missing; expected a whole number"),
        (lambda f: f.number("n"), "n is missing; expected a finite number"),
        (lambda f: f.flag("i"), "i is 1; expected true or false"),
        (lambda f: f.text("i"), "i is 1; expected a text"),
        (lambda f: f.texts("t"), 't is "a"; expected a list of texts'),
        (lambda f: f.token_ids("b"), "b is true; expected a token id"),
        (lambda f: f.object("i"), "i is 1; expected an object"),
        (lambda f: f.list("i"), "i is 1; expected a list"),
        (lambda f: f.numbers("t", above=0), 't is "a"; expected a list of positive numbers'),
    ],
)
def test_an_error_says_what_was_expected(read_field: Callable[[JSONFields], object], expected: str) -> None:
    with pytest.raises(BadFileError, match=expected):
        read_field(fields(i=1, t="a", b=True))
