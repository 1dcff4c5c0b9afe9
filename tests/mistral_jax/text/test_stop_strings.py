"""Stop strings: what is released does not depend on the pieces, and never waits longer than it must."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.text.stop_strings import StopMatcher
from tests.cpu_time import cpu_seconds_at_most


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The same on the whole text: the stop string that ends first, of several the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_any_split_gives_the_result_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released, seen = "", ""
    for piece in pieces:
        text, matched = matcher.push(piece)
        released, seen = released + text, seen + piece
        expected, expected_stop = reference(seen, stops)
        assert matched == matcher.matched == expected_stop
        if matched is None:
            # Held back is only the longest tail that may begin a stop string, no more and no less.
            held = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])), default=0)
            assert released == seen[: len(seen) - held]
        else:
            assert released == expected
    released += matcher.flush()
    assert (released, matcher.matched) == reference("".join(pieces), stops)
    assert not any(stop in released for stop in stops)


@settings(deadline=None)
@given(text=st.text(max_size=40), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3), data=st.data())
def test_unicode(text: str, stops: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    matcher = StopMatcher(stops)
    got = matcher.push(text[:cut])[0] + matcher.push(text[cut:])[0] + matcher.flush()
    assert (got, matcher.matched) == reference(text, stops)


def test_first_complete_then_longest() -> None:
    assert StopMatcher(["b", "abc"]).push("xabc") == ("xa", "b")
    assert StopMatcher(["c", "abc"]).push("xabc") == ("x", "abc")
    assert StopMatcher(["ab", "abc"]).push("xabc") == ("x", "ab")


def test_a_false_beginning_is_released_as_soon_as_it_is_one() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.push(piece)[0] for piece in ("Hi", "\n", "\n", "Us", "a", "ge")] == [
        "Hi",
        "",
        "",
        "",
        "\n\nUsa",
        "ge",
    ]


def test_after_the_end_everything_is_dropped() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("a END b") == ("a ", "END")
    assert matcher.push("more") == ("", "END")
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes() -> None:
    matcher = StopMatcher([])
    assert matcher.push("text") == ("text", None)
    assert matcher.flush() == ""


def test_long_stop_strings_take_linear_time() -> None:
    matcher = StopMatcher(["a" * 100_000 + "b"])
    with cpu_seconds_at_most(5.0):
        released = "".join(matcher.push("aaaa")[0] for _ in range(50_000)) + matcher.flush()
    assert released == "a" * 200_000


def test_empty_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="stop string is empty"):
        StopMatcher(["x", ""])


def test_many_stop_strings_cost_no_more_than_few() -> None:
    matcher = StopMatcher([f"<{i}>" for i in range(5_000)])
    text = "".join(f"<{i};" for i in range(5_000))
    with cpu_seconds_at_most(2.0):
        assert matcher.push(text)[0] + matcher.flush() == text
