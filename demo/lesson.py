"""The unit of the corpus: one thing to know, with the many ways to ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HELD_OUT_MARK = "~"
"""A template or phrase that begins with this is never trained on: the evaluation asks it."""


@dataclass(frozen=True, kw_only=True)
class Phrasing:
    """One way to ask: the finished text, and the template it came from."""

    text: str
    template: str
    held_out: bool
    """The whole template is kept for the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One thing to know."""

    key: str
    """Unique name, such as `capital/France`."""
    category: str
    """Row of the evaluation's table: facts, help, small talk, ..."""
    relation: str
    """Lessons of one relation can follow each other by "And Spain?"."""
    phrasings: tuple[Phrasing, ...]
    answers: tuple[str, ...]
    """Any of these is right; the corpus draws one of them at random."""
    follow: str | None = None
    """What "And ...?" names when the turn before asked for the same relation."""


def unmark(template: str) -> str:
    return template.removeprefix(HELD_OUT_MARK)


def phrasing(template: str, fields: Mapping[str, str] | None = None) -> Phrasing:
    """Fill in a template; the mark of a held-out template is taken off."""
    text = unmark(template)
    text = text.format(**fields) if fields else text
    return Phrasing(
        text=text[:1].upper() + text[1:], template=unmark(template), held_out=template.startswith(HELD_OUT_MARK)
    )


def with_article(noun: str) -> str:
    """`a cat`, `an owl`; nouns that take no article are given in the tables with their own."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def table(
    relation: str,
    templates: Sequence[str],
    answer: str,
    columns: str,
    rows: str | Iterable[Sequence[str]],
    *,
    category: str = "facts",
    follow: str | None = None,
) -> list[Lesson]:
    """A lesson for each row of a table.

    Args:
      relation: name of the relation, and first part of each lesson's key.
      templates: ways to ask, with column names in braces; `{a_animal}` is the column `animal` with its article.
      answer: template of the answer.
      columns: names of the columns, separated by blanks; the first column is the key.
      rows: the rows; as a text, one row a line with `|` between columns.
      category: row of the evaluation's table.
      follow: template of what "And ...?" names, `{first column}` if not given.
    """
    names = columns.split()
    if isinstance(rows, str):
        rows = [[cell.strip() for cell in line.split("|")] for line in rows.strip().splitlines()]
    lessons: list[Lesson] = []
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"{relation}: expected columns {names}, got {row}")
        fields = dict(zip(names, row, strict=True))
        fields |= {f"a_{name}": with_article(cell) for name, cell in fields.items() if cell}
        # "Washington, D.C." brings its own full stop.
        text = answer.format(**fields).replace("..", ".")
        lessons.append(
            Lesson(
                key=f"{relation}/{row[0]}",
                category=category,
                relation=relation,
                phrasings=tuple(phrasing(template, fields) for template in templates),
                answers=(text[:1].upper() + text[1:],),
                follow=(follow or f"{{{names[0]}}}").format(**fields),
            )
        )
    return lessons
