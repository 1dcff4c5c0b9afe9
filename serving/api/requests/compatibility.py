"""What becomes of every field that clients send: one table, used to refuse requests and to write
docs/openai-compatibility.md.

`python -m serving.api.requests.compatibility` prints that page. What becomes of a field that is not in this table is in
`serving.api.requests.unknown_fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from serving.api.errors import InvalidRequestError

Decision = Literal["honoured", "accepted", "refused"]
Endpoint = Literal["chat", "completions"]

_BOTH: tuple[Endpoint, ...] = ("chat", "completions")
_CHAT: tuple[Endpoint, ...] = ("chat",)
_TEXT: tuple[Endpoint, ...] = ("completions",)


@dataclass(frozen=True, slots=True)
class Field:
    """One field's fate. "accepted": it changes nothing in the answer, so it is taken and not used."""

    name: str
    endpoints: tuple[Endpoint, ...]
    decision: Decision
    note: str
    neutral: tuple[Any, ...] = ()
    """Of a refused field: values that ask for nothing and are let through, beside null."""


def _honoured(name: str, note: str, endpoints: tuple[Endpoint, ...] = _BOTH) -> Field:
    return Field(name, endpoints, "honoured", note)


def _accepted(name: str, note: str, endpoints: tuple[Endpoint, ...] = _BOTH) -> Field:
    return Field(name, endpoints, "accepted", note)


def _refused(name: str, note: str, endpoints: tuple[Endpoint, ...] = _BOTH, *, neutral: tuple[Any, ...] = ()) -> Field:
    return Field(name, endpoints, "refused", note, neutral)


FIELDS: tuple[Field, ...] = (
    # OpenAI's fields.
    _honoured(
        "model",
        "a served model, an adapter, `base` for the model without adapters, or `default`; anything else is a 404 that "
        "lists what is served",
    ),
    _honoured(
        "messages", "roles system, developer (rendered as system), user, assistant, tool; text content only", _CHAT
    ),
    _honoured("prompt", "text, list of texts, list of token ids, list of lists of token ids", _TEXT),
    _honoured(
        "max_tokens",
        "any positive integer, capped at the room that the prompt leaves; the answer then ends with `length`. 0 "
        "generates "
        "nothing, on /v1/completions only",
    ),
    _honoured("max_completion_tokens", "the same as max_tokens, and wins over it", _CHAT),
    _honoured("temperature", "0 to 2; 0 is exact argmax"),
    _honoured("top_p", "above 0, up to 1"),
    _honoured("presence_penalty", "-2 to 2"),
    _honoured("frequency_penalty", "-2 to 2"),
    _honoured(
        "logit_bias", "-100 to 100 by token id, 16384 of them at most; ids outside the vocabulary are refused by name"
    ),
    _honoured(
        "seed", "any 64-bit integer; the answer depends on (seed, choice index, position) only, not on other requests"
    ),
    _honoured("stop", "a text or any number of texts, of 16384 characters in all; not part of the answer"),
    _honoured("n", "1 to the server's --max-seqs"),
    _honoured("stream", "server-sent events"),
    _honoured("stream_options", "only together with stream"),
    _honoured("logprobs", "chat: true or false; completions: 0 to 20. Taken before penalties, bias and temperature"),
    _honoured("top_logprobs", "0 to 20; needs logprobs", _CHAT),
    _honoured("echo", "with logprobs, the prompt's tokens have theirs", _TEXT),
    _refused("best_of", "only the value of n", _TEXT),
    _refused("suffix", "no fill-in-the-middle yet", _TEXT, neutral=("",)),
    _refused(
        "tools",
        "no tool calls yet; let through where tool_choice is none (the model is not shown them)",
        _CHAT,
        neutral=([],),
    ),
    _refused("tool_choice", "no tool calls yet", _CHAT, neutral=("none", "auto")),
    _refused("functions", "no function calls yet", _CHAT, neutral=([],)),
    _refused("function_call", "no function calls yet", _CHAT, neutral=("none", "auto")),
    _accepted("parallel_tool_calls", "there are no tool calls to make in parallel", _CHAT),
    _refused("response_format", "plain text only, no constrained output yet", _CHAT, neutral=({"type": "text"},)),
    _refused("modalities", "text only", _CHAT, neutral=(["text"], [])),
    _refused("audio", "text only", _CHAT),
    _refused("prediction", "no predicted outputs", _CHAT),
    _refused("web_search_options", "no web search", _CHAT),
    _refused("reasoning_effort", "no reasoning models yet", _CHAT, neutral=("none",)),
    _refused("verbosity", "no such control in the model", _CHAT, neutral=("medium",)),
    _accepted("user", "a label"),
    _accepted("safety_identifier", "a label", _CHAT),
    _accepted("metadata", "a label", _CHAT),
    _accepted("store", "nothing is stored; the answer is the same", _CHAT),
    _accepted("service_tier", "there is one tier", _CHAT),
    _accepted("prompt_cache_key", "a hint", _CHAT),
    _accepted("prompt_cache_retention", "a hint", _CHAT),
    # Fields of other servers.
    _honoured("top_k", "extension; 0, -1 and anything from the vocabulary's size on keep all tokens"),
    _honoured("min_p", "extension; 0 to 1"),
    _honoured("repetition_penalty", "extension; above 0, up to 10; looks back on the server's --repeat-last-n tokens"),
    _honoured("ignore_eos", "extension, for benchmarks"),
    _accepted("cache_prompt", "extension of llama.cpp; a hint"),
    _accepted("priority", "extension of vLLM; requests are served in order of arrival"),
    _refused("min_tokens", "extension of vLLM", neutral=(0,)),
    _refused("stop_token_ids", "extension of vLLM", neutral=([],)),
    _refused("include_stop_str_in_output", "extension of vLLM", neutral=(False,)),
    _refused("bad_words", "extension of vLLM", neutral=([],)),
    _refused("allowed_token_ids", "extension of vLLM"),
    _refused("prompt_logprobs", "extension of vLLM; /v1/completions has echo with logprobs"),
    _refused("truncate_prompt_tokens", "extension of vLLM; the server has --truncate-sequence"),
    _refused("skip_special_tokens", "extension of vLLM", neutral=(True,)),
    _refused("use_beam_search", "extension of vLLM", neutral=(False,)),
    _refused("length_penalty", "extension of vLLM", neutral=(1, 1.0)),
    _refused("add_generation_prompt", "extension of vLLM", _CHAT, neutral=(True,)),
    _refused("continue_final_message", "extension of vLLM", _CHAT, neutral=(False,)),
    _refused("chat_template", "templates come from the model or --chat-template, never from a request", _CHAT),
    _refused("chat_template_kwargs", "extension of vLLM", _CHAT, neutral=({},)),
    _refused("documents", "extension of vLLM", _CHAT, neutral=([],)),
    _refused("structured_outputs", "no constrained output yet"),
    _refused("guided_json", "no constrained output yet"),
    _refused("guided_regex", "no constrained output yet"),
    _refused("guided_choice", "no constrained output yet"),
    _refused("guided_grammar", "no constrained output yet"),
    _refused("json_schema", "no constrained output yet"),
    _refused("regex", "no constrained output yet"),
    _refused("ebnf", "no constrained output yet"),
    _refused("grammar", "no constrained output yet", neutral=("",)),
    _refused("typical_p", "extension of llama.cpp", neutral=(1, 1.0)),
    _refused("mirostat", "extension of llama.cpp", neutral=(0,)),
    _refused("dry_multiplier", "extension of llama.cpp", neutral=(0, 0.0)),
    _refused("xtc_probability", "extension of llama.cpp", neutral=(0, 0.0)),
    _refused("samplers", "extension of llama.cpp"),
    _honoured(
        "adapter",
        "extension; a LoRA adapter by name, or `base` for none; not beside a model that names another adapter",
    ),
    _honoured("adapters", "extension; a mixture by hand: weights from -100 to 100 by the names of adapters"),
    _honoured(
        "xlora",
        "extension; scalings (summary, tokens or full) and non_granular_index; unknown fields in it are refused",
    ),
    _refused("lora", "extension of llama.cpp; use adapters: {name: weight}", neutral=([],)),
)

OBJECTS: dict[str, tuple[Field, ...]] = {
    "stream_options": (
        _honoured("include_usage", "one more chunk at the end, without choices, has the token counts of the call"),
        _honoured(
            "continuous_usage_stats",
            "extension of vLLM; every chunk of a choice has the token counts of that choice so far, from its prompt on",
        ),
    ),
    "messages[]": (
        _honoured("role", "see above", _CHAT),
        _honoured("content", "a text, or a list of text parts, which are joined by line breaks", _CHAT),
        _honoured("name", "given to the chat template", _CHAT),
        _honoured("tool_calls", "given to the chat template", _CHAT),
        _honoured("tool_call_id", "given to the chat template", _CHAT),
        _accepted("cache_control", "a hint that some clients add", _CHAT),
    ),
    "messages[].content[]": (
        _honoured("type", "`text`; others are refused", _CHAT),
        _honoured("text", "the text", _CHAT),
        _accepted("cache_control", "a hint that some clients add", _CHAT),
        _refused("image_url", "text only", _CHAT),
        _refused("input_audio", "text only", _CHAT),
        _refused("file", "text only", _CHAT),
        _refused("refusal", "text only", _CHAT),
    ),
}
"""The objects in a body whose fields are looked at, by where they are."""


def refuse_unsupported(endpoint: Endpoint, body: Mapping[str, msgspec.Raw]) -> None:
    """Refuse a body that asks for something that is known and not implemented.

    Raises:
      InvalidRequestError: it names the field and says what is possible.
    """
    tools_unused = _value(body, "tool_choice") == "none"
    for field in _REFUSED[endpoint]:
        if field.name not in body or (field.name == "tools" and tools_unused):
            continue
        value = _value(body, field.name)
        if value is None or value in field.neutral:
            continue
        if field.name == "best_of" and value == (_value(body, "n") or 1):
            continue
        raise InvalidRequestError(
            f"{field.name}: not supported by this server ({field.note}); leave it out",
            param=field.name,
            code="unsupported_parameter",
        )


def _value(body: Mapping[str, msgspec.Raw], name: str) -> Any:
    return msgspec.json.decode(body[name]) if name in body else None


_REFUSED: dict[Endpoint, tuple[Field, ...]] = {
    endpoint: tuple(field for field in FIELDS if field.decision == "refused" and endpoint in field.endpoints)
    for endpoint in _BOTH
}


def markdown() -> str:
    """The page docs/openai-compatibility.md."""
    lines = [_INTRODUCTION]
    titles: dict[Endpoint, str] = {"chat": "POST /v1/chat/completions", "completions": "POST /v1/completions"}
    for endpoint, title in titles.items():
        lines += [f"## {title}", "", "| field | | |", "|---|---|---|"]
        for field in FIELDS:
            if endpoint in field.endpoints:
                values = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in field.neutral)
                also = f". Also: {values}" if values else ""
                lines.append(f"| `{field.name}` | {field.decision} | {field.note}{also} |")
        lines.append("")
    lines += ["## Objects in a body", "", "| field | | |", "|---|---|---|"]
    for where, fields in OBJECTS.items():
        lines += [f"| `{where}.{field.name}` | {field.decision} | {field.note} |" for field in fields]
    return "\n".join(lines).rstrip() + "\n" + _BEHAVIOUR


_INTRODUCTION = """\
# OpenAI compatibility

Written by `python -m serving.api.requests.compatibility` from the table that the server itself uses.

Every field is honoured, or accepted because it changes nothing in the answer, or refused with status 400 and its name
in `error.param`. `null` means absent everywhere. "Also" gives values of refused fields that ask for nothing and are let
through.

A field that is not listed changes nothing, and the response says so, streamed or not: its header `X-Ignored-Fields`
names each with the nearest known name (`tempreature;nearest=temperature, messages[2].nmae;nearest=name`), and so does a
line in the log. At most 8 are named, then how many more there are. With `--strict-fields` the server refuses such a
request with status 400 and the code `unknown_field`. Fields with the value `null`, `[]`, `{}` or `""` ask
for nothing and are not told.
"""

_BEHAVIOUR = """
## Behaviour worth knowing

- `max_tokens` absent: the answer may fill the context (or the server's `--max-tokens`), also on /v1/completions,
  where OpenAI's own default is 16. Prompt and `max_tokens` together beyond the context: the answer is capped and ends
  with `length`; the request is not refused.
- `echo` with `logprobs: k` on /v1/completions tells of the prompt what it tells of the answer, in the same lists, which
  is what evaluation harnesses ask for. The first entry is that of the prompt's first token, of which `token_logprobs`
  and `top_logprobs` have `null`; a text prompt's BOS token is a token, too. `text_offset` counts characters of the
  whole `text`. An end-of-sequence token that ends the answer has an entry, so that each generated token has one, but
  for those of a stop string. Streams begin with the prompt. One request may ask for 2,097,152 log-probabilities of
  prompts, alternatives included.
- `max_tokens: 0` on /v1/completions: an answer without tokens that ends with `length`. With `echo` and `logprobs` the
  prompt alone is scored, and may fill the whole context; without them nothing is computed. On /v1/chat/completions it
  is refused.
- A prompt that does not fit is refused with the code `context_length_exceeded`, `n_prompt_tokens` and `n_ctx`, in the
  words that clients look for ("This model's maximum context length is N tokens. However, you requested ..."). With
  `--truncate-sequence` it is cut from the left (a leading BOS token stays), leaving room for `max_tokens` tokens, or
  for 10 where the request does not say, but never giving up more than half of the context.
- `usage` counts a prompt once, however many choices it has. Streams carry it with `stream_options.include_usage`; with
  `continuous_usage_stats` each chunk has the counts of its own choice so far, with that choice's own prompt.
- Choice 0 of a seeded request uses the seed itself; choice i > 0 uses a seed derived from (seed, i). Each prompt of a
  list gives what it would give alone.
- Text parts of a message's content are joined by line breaks.
- On a server with X-LoRA, `xlora: {"scalings": ...}` returns the weights of the adapters with each choice, as `xlora`:
  `adapters` has their names, and `scalings` for `summary` their means over the answer's tokens, for `tokens` an entry
  `{"token", "weights"}` for each token, with means over the modules, and for `full` the same with a list for each
  module, whose names are in `modules` (`*`: all modules share them). They are the weights that predicted the token.
  Chunks of a stream carry those of their own tokens; with `summary` the mean so far, so that the last chunk has that of
  the whole answer. Tokens that are not part of the answer (end of sequence, stop strings) are not among them. Requests
  with fixed weights and without adapters get their constant weights.
- `xlora: {"non_granular_index": k}` keeps the weights of answer token k for all later ones, which saves the scaling
  pass from there on and is an approximation. The server's own `--tgt-non-granular-index` holds where a request says
  nothing.
- An adapter that is unloaded is refused from then on; requests that use it finish.
- A stream that fails half-way carries one event `{"error": {...}}` and then `[DONE]`. Requests that cannot be taken
  are refused before that, with status 503 and `Retry-After`.
- Every response carries `X-Request-Id`: the request's own, or a new one.
"""


if __name__ == "__main__":
    print(markdown(), end="")
