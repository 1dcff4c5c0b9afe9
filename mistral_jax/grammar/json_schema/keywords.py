"""What each keyword of JSON Schema is to us."""

from __future__ import annotations

from typing import Final

ANNOTATIONS: Final = frozenset(
    {
        *("$schema", "$comment", "$defs", "definitions", "$anchor", "$dynamicAnchor", "$recursiveAnchor"),
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
        *("discriminator", "externalDocs", "xml"),  # OpenAPI's
        "contentSchema",  # means nothing without contentMediaType
        *("markdownDescription", "enumNames", "enumDescriptions", "errorMessage"),
    }
)
"""Keywords that restrict nothing. Those that begin with `x-` are annotations, too."""

DRAFTS: Final = (
    "http://json-schema.org/draft-04/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
)
"""Values of `$schema`; an empty fragment is left out."""

TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")

UNSUPPORTED: Final = {
    "not": "what a value must not be cannot be held",
    "if": "conditions cannot be held; `anyOf` of the cases can",
    "contains": "what some item must be cannot be held",
    "dependentRequired": "dependencies between properties cannot be held; `anyOf` of the cases can",
    "dependentSchemas": "dependencies between properties cannot be held; `anyOf` of the cases can",
    "dependencies": "dependencies between properties cannot be held; `anyOf` of the cases can",
    "$dynamicRef": "dynamic references cannot be held; `$ref` can",
    "$recursiveRef": "dynamic references cannot be held; `$ref` can",
    "$vocabulary": "vocabularies are not known",
    "contentMediaType": "what a string contains cannot be held",
    "nullable": 'it is OpenAPI\'s; JSON Schema writes `"type": ["string", "null"]`',
    "x-guidance": "options of the grammar library are not for requests",
    "extends": "it is a keyword of draft 3",
    "disallow": "it is a keyword of draft 3",
    "divisibleBy": "it is a keyword of draft 3; `multipleOf` is newer",
}
"""Why a known keyword is refused, unless its value makes it mean nothing."""

STRING: Final = ("minLength", "maxLength", "pattern", "format", "contentEncoding")
NUMBER: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
ARRAY: Final = (
    *("prefixItems", "items", "additionalItems", "unevaluatedItems"),
    *("minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
)
OBJECT: Final = (
    *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"),
    *("required", "minProperties", "maxProperties"),
)
IN_PLACE: Final = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
"""Keywords that hold for the value as a whole, in whatever order they come."""
