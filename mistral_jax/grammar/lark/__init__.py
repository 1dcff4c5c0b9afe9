"""Grammars in Lark and GBNF: what users may write in Lark, and GBNF brought into Lark."""

from mistral_jax.grammar.lark.checked import checked
from mistral_jax.grammar.lark.gbnf import gbnf_to_lark

__all__ = ["checked", "gbnf_to_lark"]
