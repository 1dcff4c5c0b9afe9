"""JSON schemas, brought into the few keywords that llguidance holds exactly; everything else is refused by name.

`canonical` reads a schema of any draft from 4 to 2020-12. Its result has no annotations, references of one form, and
patterns without dialects, so that what llguidance understands differently never reaches it."""

from mistral_jax.grammar.json_schema.canonical import canonical

__all__ = ["canonical"]
