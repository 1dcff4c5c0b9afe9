"""How POST /completion handles each known field of llama.cpp's."""

from __future__ import annotations

from typing import Any

from mistral_jax.runtime.sampling.params import SAMPLERS
from serving.api.endpoint import Field


def _honoured(name: str, note: str) -> Field:
    return Field(name, "honoured", note)


def _accepted(name: str, note: str) -> Field:
    return Field(name, "accepted", note)


def _refused(name: str, note: str, *neutral: Any) -> Field:
    return Field(name, "refused", note, neutral=neutral)


FIELDS = (
    _honoured(
        "prompt", "a text; token ids and texts mixed, which make one prompt; or a list of prompts: texts, or such lists"
    ),
    _honoured("model", "as on /v1/completions"),
    _honoured("n_predict", "-1 and -2: as many as fit in the context; 0: none"),
    _honoured("temperature", "0 to 2; applied before truncation, see samplers"),
    _honoured("top_k", "0, -1 and anything from the vocabulary's size on keep all tokens"),
    _honoured("top_p", "above 0, up to 1"),
    _honoured("min_p", "0 to 1"),
    _honoured("typical_p", "above 0, up to 1"),
    _honoured("top_n_sigma", "0 and below: all tokens"),
    _honoured("xtc_probability", "0 to 1"),
    _honoured("xtc_threshold", "0 to 1"),
    _honoured("dry_multiplier", "0 to 100"),
    _honoured("dry_base", "1 to 10"),
    _honoured("dry_allowed_length", "1 to 50"),
    _honoured("dry_penalty_last_n", "-1: the whole context"),
    _honoured("dry_sequence_breakers", "as on /v1/completions"),
    _honoured("samplers", f"only a list whose result is that of the order here: {', '.join(SAMPLERS)}"),
    _honoured("grammar", "GBNF"),
    _honoured("json_schema", "as on /v1/completions"),
    _honoured("repeat_penalty", "above 0, up to 10; prompt included"),
    _honoured("repeat_last_n", "the server's --repeat-last-n, or 0 for no penalties; others need repeat_penalty 1"),
    _honoured("presence_penalty", "-2 to 2; counts the whole completion and not the prompt, as OpenAI does"),
    _honoured("frequency_penalty", "-2 to 2; 〃"),
    _honoured("typical_p", "as on /v1/completions"),
    _honoured("top_n_sigma", "〃; below 0: off"),
    _honoured("xtc_probability", "〃"),
    _honoured("xtc_threshold", "〃"),
    _honoured("dry_multiplier", "〃"),
    _honoured("dry_base", "〃"),
    _honoured("dry_allowed_length", "〃"),
    _honoured("dry_penalty_last_n", "〃"),
    _honoured("dry_sequence_breakers", "〃"),
    _honoured("samplers", "〃"),
    _honoured("seed", "any 64-bit integer; -1 and 4294967295: a random one"),
    _honoured("stop", "a string or a list of strings; empty ones are left out"),
    _honoured(
        "logit_bias",
        "pairs of token id or text and -100 to 100, or an object; a text biases all its tokens; `false` is -100; ids "
        "outside the vocabulary are an error",
    ),
    _honoured("ignore_eos", "for benchmarks"),
    _honoured("n_probs", "0 to 20; taken before penalties, bias and temperature"),
    _honoured("n_cmpl", "1 to the server's --max-seqs"),
    _honoured("stream", "`data:` events without `[DONE]`; the last has `stop: true`"),
    _honoured("return_tokens", "ids of the tokens whose text is returned; chunks of a stream always have them"),
    _honoured("timings_per_token", "`timings` in each chunk of a stream"),
    _honoured("return_progress", "chunks with `prompt_progress` while the prompt is run"),
    _honoured("response_fields", "`a/b` is field b of a; fields that are not there are left out"),
    _honoured("lora", "a mixture with fixed weights: adapters by number, see GET /lora-adapters"),
    _honoured("parse_special", "extension; no: control tokens in a prompt's texts are text, as on /v1/completions"),
    _honoured("cache_prompt", "false: the whole prompt is run, and nothing of it is kept for later requests"),
    _accepted("id_slot", "a hint; slots are not assigned by requests"),
    _accepted("n_keep", "the context is never shifted"),
    _accepted("n_discard", "the context is never shifted"),
    _accepted("n_cache_reuse", "a hint"),
    _accepted("mirostat_tau", "of no effect without mirostat"),
    _accepted("mirostat_eta", "of no effect without mirostat"),
    _accepted("dynatemp_exponent", "of no effect without dynatemp_range"),
    _accepted("sse_ping_interval", "the server has --keep-alive"),
    _refused("mirostat", "no mirostat", 0),
    _refused("dynatemp_range", "no dynamic temperature", 0, 0.0),
    _refused("min_keep", "truncation keeps at least one token", 0, 1),
    _refused("grammar_lazy", "the grammar holds from the first token on", False),
    _refused("grammar_triggers", "the grammar holds from the first token on", []),
    _refused("post_sampling_probs", "log-probabilities are those of the model", False),
    _refused("n_indent", "no least indentation", 0),
    _refused("t_max_predict_ms", "the server has --request-timeout", 0),
    _refused("t_max_prompt_ms", "the server has --request-timeout", 0),
    _refused("image_data", "text only", []),
    _refused("input_prefix", "no fill-in-the-middle here", ""),
    _refused("input_suffix", "no fill-in-the-middle here", ""),
)
