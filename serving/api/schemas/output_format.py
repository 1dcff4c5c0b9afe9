"""The fields by which a request asks for a format of its completion: OpenAI's, and those of llama.cpp, vLLM, SGLang and
mistral.rs."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from serving.api.schemas.documented import documented as _doc


class JsonSchemaFormat(Struct, kw_only=True):
    """A JSON schema. Its name and description change nothing."""

    schema: Annotated[Any, _doc("the JSON schema")] = None
    strict: Annotated[bool | None, _doc("completions match the schema with and without it")] = None


class ResponseFormat(Struct, kw_only=True):
    """The format of the message."""

    type: Annotated[str, _doc("text, json_object or json_schema")]
    json_schema: JsonSchemaFormat | None = None
    schema: Annotated[Any, _doc("for json_object: a JSON schema (an extension of llama.cpp)")] = None


class StructuredOutputs(Struct, kw_only=True):
    """One of its fields says what the completion must match (an extension of vLLM)."""

    json: Annotated[Any, _doc("a JSON schema, or one as text")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: Annotated[str | None, _doc("as the field `grammar`")] = None
    json_object: bool | None = None


class TypedGrammar(Struct, kw_only=True):
    """A grammar and its kind (an extension of mistral.rs)."""

    type: Annotated[str, _doc("lark, gbnf, regex or json_schema")]
    value: Any


class GrammarFields(Struct, kw_only=True):
    """Extensions; at most one of them may be set, or `response_format`."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Annotated[Any, _doc("a JSON schema, or one as text (an extension)")] = None
    guided_regex: Annotated[str | None, _doc("a regular expression (an extension)")] = None
    guided_choice: Annotated[list[str] | None, _doc("the texts to choose from (an extension)")] = None
    guided_grammar: Annotated[str | None, _doc("as `grammar` (an extension)")] = None
    json_schema: Annotated[Any, _doc("a JSON schema (an extension)")] = None
    regex: Annotated[str | None, _doc("a regular expression for the whole completion (an extension)")] = None
    ebnf: Annotated[str | None, _doc("a grammar in GBNF (an extension)")] = None
    grammar: Annotated[
        str | TypedGrammar | None,
        _doc("a grammar in llama.cpp's GBNF if it has `::=`, else in Lark; or its kind and value (an extension)"),
    ] = None
