"""The page docs/openai-compatibility.md, made from the fields of the endpoints' records.

`python -m serving.api.endpoints` prints it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.api.endpoint import Endpoint, Field


def compatibility_page(endpoints: tuple[Endpoint[Any], ...]) -> str:
    """The page, as Markdown."""
    lines = [_INTRODUCTION]
    objects: dict[str, tuple[Field, ...]] = {}
    for endpoint in endpoints:
        if endpoint.fields is None:
            continue
        objects |= endpoint.objects
        lines += [f"## {endpoint.method} {endpoint.template}", "", "| field | | |", "|---|---|---|"]
        for field in endpoint.fields:
            values = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in field.neutral)
            also = f". Also: {values}" if values else ""
            lines.append(f"| `{field.name}` | {field.decision} | {field.note}{also} |")
        lines.append("")
    lines += ["## Objects in a body", "", "| field | | |", "|---|---|---|"]
    for where, fields in objects.items():
        lines += [f"| `{where}.{field.name}` | {field.decision} | {field.note} |" for field in fields]
    return "\n".join(lines).rstrip() + "\n" + _BEHAVIOUR


_INTRODUCTION = """\
# OpenAI compatibility

Written by `python -m serving.api.endpoints` from the table that the server itself uses.

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
