"""Names are sorted as people count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conversion.adapters.natural_sort import natural_sort


def test_numbers_count_by_value() -> None:
    assert natural_sort(["adapter_10", "adapter_2", "adapter_1"]) == ["adapter_1", "adapter_2", "adapter_10"]
    assert natural_sort(["10", "9", "1"]) == ["1", "9", "10"]
    assert natural_sort(["b1", "a10b2", "a10b1", "a9"]) == ["a9", "a10b1", "a10b2", "b1"]
    assert natural_sort(["2" + 5000 * "0", "1" + 5000 * "0"])[0].startswith("1")


@given(st.lists(st.integers(0, 10**30), unique=True), st.text("ab_-. ", max_size=4), st.text("ab_-", max_size=3))
def test_numbered_names_are_in_order_of_their_numbers(numbers: list[int], before: str, after: str) -> None:
    names = [f"{before}{number}{after}" for number in numbers]
    assert natural_sort(names) == [f"{before}{number}{after}" for number in sorted(numbers)]


@given(st.lists(st.text("a01_", max_size=5)))
def test_the_order_does_not_depend_on_where_names_stood(names: list[str]) -> None:
    assert natural_sort(names) == natural_sort(reversed(names))
