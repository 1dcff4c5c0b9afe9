"""Completions as text: control tokens that are reported, in their places in the text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.text.completion import CompletionStream, Piece
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

V3 = tokenizer("v3")
CALLS = V3.control_id("[TOOL_CALLS]")
INST = V3.control_id("[INST]")
EOS = 2


def pieces(tokens: list[int], *, stop: tuple[str, ...] = (), reported: tuple[int, ...] = (CALLS,)) -> list[Piece]:
    params = SamplingParams(stop=stop)
    stream = CompletionStream(V3, params, eos_ids=[EOS], max_tokens=1000, reported=reported)
    found: list[Piece] = []
    for token in [*tokens, EOS]:
        found.append(stream.push(Sampled(token, 0.0, ())))
        if found[-1].finish_reason is not None:
            break
    return found


def items(tokens: list[int], **more: tuple[str, ...]) -> list[str | int]:
    """The items of all pieces, adjacent texts joined."""
    joined: list[str | int] = []
    for piece in pieces(tokens, **more):
        assert "".join(item for item in piece.items if isinstance(item, str)) == piece.text
        assert "" not in piece.items
        for item in piece.items:
            if isinstance(item, str) and joined and isinstance(joined[-1], str):
                joined[-1] += item
            else:
                joined.append(item)
    return joined


def test_control_tokens_are_reported_in_their_places() -> None:
    hello, world = V3.encode("Hello"), V3.encode(" world", at_start=False)
    assert items([*hello, CALLS, *world, CALLS, CALLS]) == ["Hello", CALLS, " world", CALLS, CALLS]
    assert items([CALLS]) == [CALLS]
    assert items([INST, *hello, INST]) == ["Hello"]
    assert all(piece.items == () for piece in pieces([*hello, CALLS], reported=()))


def test_text_that_may_begin_a_stop_string_holds_back_the_control_tokens_after_it() -> None:
    x, a, b = (V3.encode(text, at_start=False) for text in "xab")
    held = [piece.items for piece in pieces([*x, *a, CALLS, *b, *b], stop=("abc",))]
    assert held == [("x",), (), (), (), ("a", CALLS, "bb"), ()]
    free = [piece.items for piece in pieces([*x, CALLS, *a, *b], stop=("abc",))]
    assert free == [("x",), (CALLS,), (), (), ("ab",)]


def test_stop_strings_go_over_control_tokens_as_they_do_unreported() -> None:
    a, b, c = (V3.encode(text, at_start=False) for text in ("xa", "b", "c"))
    assert items([*a, CALLS, *b, *c], stop=("ab",)) == ["x"]
    assert items([*a, CALLS, *b, *c], stop=("b",)) == ["xa", CALLS]
    assert items([*a, CALLS, *b, CALLS, *c], stop=("c",)) == ["xa", CALLS, "b", CALLS]


def test_an_incomplete_character_ends_before_a_reported_token() -> None:
    face = V3.encode("🫥", at_start=False)
    assert [len(V3.token_bytes(token)) for token in face] == [1, 1, 1, 1]
    assert items([*face, CALLS, *face]) == ["🫥", CALLS, "🫥"]
    assert items([*face[:2], CALLS, *face]) == ["\ufffd", CALLS, "🫥"]
    assert items([*face[:2], INST, *face[2:]]) == ["🫥"]


TOKENS = st.lists(
    st.one_of(
        st.sampled_from([CALLS, INST]),
        st.sampled_from([token for text in ("ab", "abc", "é🫥", " x") for token in V3.encode(text, at_start=False)]),
    ),
    max_size=20,
)


@settings(max_examples=300, deadline=None)
@given(tokens=TOKENS, stop=st.sampled_from([(), ("ab",), ("abc", "x"), ("é",), ("bb", "a b")]))
def test_the_text_is_that_of_a_completion_without_reports(tokens: list[int], stop: tuple[str, ...]) -> None:
    plain = "".join(piece.text for piece in pieces(tokens, stop=stop, reported=()))
    found = items(tokens, stop=stop)
    text = "".join(item for item in found if isinstance(item, str))
    whole = V3.decode(tokens, skip_control=False)
    if "\ufffd" not in V3.decode(tokens) + text:
        assert text == plain
    if not stop and "\ufffd" not in text:
        shown = "".join(item if isinstance(item, str) else "[TOOL_CALLS]" for item in found)
        assert shown == whole.replace("[INST]", "")
