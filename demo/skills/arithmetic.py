"""Sums up to 99, differences of numbers up to 99, and products up to 10 times 10.

A sum is held out in both orders, a difference and a product in one: `7 x 8` is never trained on, `8 x 7` is. A times
table cannot be worked out; that its factors may be exchanged, can be learnt.
"""

from __future__ import annotations

import random

from demo.skills.held_out import choose, draw

LARGEST, LARGEST_FACTOR = 99, 10
TOO_HARD = "That is too hard for me. I add and subtract up to 99, and I multiply up to 10 times 10."
CAN = "Yes, I add and subtract up to 99, and I multiply up to 10 times 10."

_SIGN = [
    "What is {a} {op} {b}?",
    "What is {a} {op} {b}?",
    "{a} {op} {b}",
    "{a} {op} {b} = ?",
    "{a} {op} {b} =",
    "{a}{op}{b}",
    "{a}{op}{b}=",
    "{a}{op}{b}?",
    "How much is {a} {op} {b}?",
    "Calculate {a} {op} {b}.",
    "Compute {a} {op} {b}.",
    "Tell me what {a} {op} {b} is.",
    "Do you know what {a} {op} {b} is?",
    "~Please work out {a} {op} {b}.",
    "~Can you solve {a} {op} {b} for me?",
    "~I need the result of {a} {op} {b}.",
]
_SUM = [
    "What is {a} plus {b}?",
    "{a} plus {b}",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "I have {a} apples and buy {b} more. How many do I have?",
    "There are {a} birds in a tree and {b} more come. How many are there?",
    "~How much do {a} and {b} make together?",
    "~What do you get when you add {a} and {b}?",
]
_DIFFERENCE = [
    "What is {a} minus {b}?",
    "{a} minus {b}",
    "How much is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Take {b} away from {a}.",
    "What is the difference between {a} and {b}?",
    "If I have {a} euros and spend {b}, how much is left?",
    "I have {a} apples and eat {b}. How many are left?",
    "~What do you get when you subtract {b} from {a}?",
    "~What is left of {a} without {b}?",
]
_PRODUCT = [
    "What is {a} times {b}?",
    "{a} times {b}",
    "How much is {a} times {b}?",
    "Multiply {a} by {b}.",
    "Multiply {a} and {b}.",
    "What is the product of {a} and {b}?",
    "I buy {a} boxes of {b} eggs. How many eggs are that?",
    "~What is {a} multiplied by {b}?",
    "~What do you get when you multiply {a} by {b}?",
]
_OUT_OF_REACH = [
    "What is {a} divided by {b}?",
    "What is {a} / {b}?",
    "{a} / {b}",
    "Divide {a} by {b}.",
    "What is the square root of {a}?",
    "What is {a} percent of {b}?",
    "Is {a} a prime number?",
    "Solve x + {a} = {b}.",
    "Calculate {a}.5 * {b}.",
]
_CAN_YOU = [
    "Can you do maths?",
    "Can you calculate?",
    "Can you add numbers?",
    "Can you do arithmetic?",
    "Can you multiply?",
    "~Are you able to calculate?",
]


def answer(a: int, sign: str, b: int) -> str:
    """What to say to `a sign b`: the steps, where it takes some, and the result."""
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    if sign == "+":
        result, carry = a + b, ones_a + ones_b > 9
        steps = f"{ones_a}+{ones_b}={ones_a + ones_b}, {tens_a}+{tens_b}{'+1' * carry}={tens_a + tens_b + carry}: "
    elif sign == "-":
        result, borrow = a - b, ones_a < ones_b
        ones = ones_a + 10 * borrow
        steps = f"{ones}-{ones_b}={ones - ones_b}, {tens_a}-{tens_b}{'-1' * borrow}={tens_a - tens_b - borrow}: "
    else:
        result, steps = a * b, ""
    return f"{steps if max(a, b) > 9 else ''}{a}{sign}{b}={result}."


def question(rng: random.Random, *, held_out: bool, new_template: bool = False) -> tuple[str, str]:
    """A question and its answer.

    Args:
      rng: source of randomness.
      held_out: ask with numbers that are never trained on, or only with others.
      new_template: ask in words that are never trained on.
    """
    kind = rng.choices(("+", "-", "x"), (2, 2, 1))[0]
    if kind == "+":
        a, b = draw(lambda: _summands(rng), held_out=held_out, key=lambda a, b: ("+", min(a, b), max(a, b)))
        signs, templates = ("+",), _SUM
    elif kind == "-":
        a, b = draw(
            lambda: tuple(sorted((_number(rng), _number(rng)), reverse=True)),
            held_out=held_out,
            key=lambda a, b: ("-", a, b),
        )
        signs, templates = ("-",), _DIFFERENCE
    else:
        a, b = draw(lambda: (_factor(rng), _factor(rng)), held_out=held_out, key=_product_key)
        signs, templates = ("x", "*", "×"), _PRODUCT
    template = choose(rng, _SIGN if rng.random() < 0.6 else templates, new=new_template)
    return template.format(a=a, b=b, op=rng.choice(signs)), answer(a, kind, b)


def out_of_reach(rng: random.Random) -> tuple[str, str]:
    """A question that the skill does not cover, or about the skill itself, and what to say to it."""
    if rng.random() < 0.2:
        return choose(rng, _CAN_YOU, new=False), CAN
    a, b = rng.randrange(1, 10000), rng.randrange(1, 10000)
    if rng.random() < 0.4:
        return rng.choice(_OUT_OF_REACH).format(a=a if rng.random() < 0.5 else _number(rng), b=_number(rng)), TOO_HARD
    if rng.random() < 0.5:
        a, b = rng.randrange(LARGEST + 1, 1000), rng.choice([_number(rng), rng.randrange(LARGEST + 1, 1000)])
    else:
        a, b = max(a, LARGEST + 1), max(b, LARGEST + 1)
    if rng.random() < 0.5:
        a, b = b, a
    op = rng.choice(["+", "-", "*", "x", "×"])
    return choose(rng, _SIGN, new=False).format(a=a, b=b, op=op), TOO_HARD


def _number(rng: random.Random) -> int:
    return rng.randrange(1, 10 if rng.random() < 0.25 else LARGEST + 1)


def _summands(rng: random.Random) -> tuple[int, int]:
    while (a := _number(rng)) + (b := _number(rng)) > LARGEST:
        pass
    return a, b


def _factor(rng: random.Random) -> int:
    return rng.randrange(1, LARGEST_FACTOR + 1)


def _product_key(a: int, b: int) -> tuple[object, ...]:
    # Of 7 x 8 and 8 x 7 only one can be held out, which one depends on the pair; a square is always trained on.
    return ("x", a, b) if (a < b) == bool((a + b) % 2) and a != b else ("x",)
