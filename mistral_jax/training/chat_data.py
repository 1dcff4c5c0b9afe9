"""Chat data: lines of JSON to token ids, and which of the tokens count in the loss.

Each line is an object of one of these kinds:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"text": "…"}

Conversations are rendered with the model's own chat template, so that training and serving see the same tokens. The
assistant's turns count in the loss, each with the token that ends it; an assistant's message with `"weight": 0` does
not. A conversation may have `tools`. Of a prompt and its completion, both raw text, the completion counts; of a text,
all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mistral_jax.chat import ChatFormatter, ChatTemplateError, ConversationError
from mistral_jax.tokenizer import Tokenizer

_EXPECTED = 'expected an object with "messages", with "prompt" and "completion", or with "text"'


class DataError(ValueError):
    """A line of the data is unusable; the message names it."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One text to learn from."""

    tokens: np.ndarray
    """int32 [T]"""
    counted: np.ndarray
    """bool [T]: whether the model is to predict this token from those before it."""

    def __len__(self) -> int:
        return len(self.tokens)


Data = str | Path | Sequence["str | Path | Mapping[str, Any] | Example"]
"""A file of JSON lines; or several files, objects as its lines have them, or examples."""


class ChatEncoder:
    """Turns an object of the data into examples."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormatter | None, eos_ids: Iterable[int]) -> None:
        """
        Args:
          chat: None: conversations are refused.
          eos_ids: tokens that end generation.
        """
        self._tokenizer = tokenizer
        self._chat = chat
        self._eos_ids = frozenset(eos_ids)

    def encode(self, record: Mapping[str, Any]) -> list[Example]:
        """The examples of one object: mostly one.

        Raises:
          DataError: it has none of the forms, or the chat template refuses it.
        """
        kinds = [kind for kind in ("messages", "prompt", "text") if kind in record]
        if len(kinds) != 1 or ("completion" in record) != (kinds == ["prompt"]):
            found = ", ".join(map(repr, record)) or "nothing"
            raise DataError(f"found {found}; {_EXPECTED}")
        if kinds == ["messages"]:
            return self._conversation(record)
        if kinds == ["prompt"]:
            return [self._raw(_text(record, "prompt"), _text(record, "completion"))]
        return [self._raw("", _text(record, "text"))]

    def _conversation(self, record: Mapping[str, Any]) -> list[Example]:
        if self._chat is None:
            raise DataError('the model has no chat template; use "text", or give it one (--chat-template)')
        messages: Any = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in cast("list[Any]", messages)):
            raise DataError(f'"messages" is {_short(messages)}; expected a list of objects with a role and a content')
        said = [i for i, message in enumerate(cast("list[dict[str, Any]]", messages)) if _is_said(message, i)]
        if not said:
            raise DataError("no message of the assistant counts, so there is nothing to learn from it")
        tools: Any = record.get("tools")
        try:
            return self._turns(cast("list[dict[str, Any]]", messages), said, tools)
        except (ConversationError, ChatTemplateError) as error:
            raise DataError(f"the chat template refuses it: {error}") from error

    def _turns(self, messages: list[dict[str, Any]], said: list[int], tools: Any) -> list[Example]:
        """One example for the conversation. Turns that a template renders differently once the conversation goes on
        (without their reasoning, or without the system message) get examples of their own, as the model sees them when
        it generates them.
        """
        assert self._chat is not None
        chat = self._chat

        def rendered(count: int, *, asks: bool) -> list[int]:
            return chat.encode(_without_weights(messages[:count]), add_generation_prompt=asks, tools=tools)

        whole = rendered(said[-1] + 1, asks=False)
        counted = np.zeros((len(whole),), np.bool_)
        others: list[Example] = []
        for i in said:
            before = rendered(i, asks=True)
            upto = whole if i == said[-1] else rendered(i + 1, asks=False)
            if upto[: len(before)] != before:
                raise DataError(
                    f"the chat template does not write messages[{i}] after the prompt that asks for it, "
                    "so the assistant's tokens cannot be found; give another template (--chat-template)"
                )
            end = self._end_of_turn(upto, len(before), i)
            if whole[:end] == upto[:end]:
                counted[len(before) : end] = True
            else:
                own = np.zeros((end,), np.bool_)
                own[len(before) :] = True
                others.append(Example(np.array(upto[:end], np.int32), own))
        end = int(np.flatnonzero(counted)[-1]) + 1
        return [*others, Example(np.array(whole[:end], np.int32), counted[:end])]

    def _end_of_turn(self, tokens: list[int], start: int, index: int) -> int:
        """One past the token that ends the turn; a template may write more after it, which the model does not
        generate."""
        ends = [i for i in range(start, len(tokens)) if tokens[i] in self._eos_ids]
        if not ends:
            raise DataError(
                f"the chat template ends messages[{index}] with none of the model's end tokens "
                f"{sorted(self._eos_ids)}, so the model would not learn where to stop; "
                "give another template (--chat-template)"
            )
        return ends[-1] + 1

    def _raw(self, prompt: str, completion: str) -> Example:
        tokenizer = self._tokenizer
        if not completion:
            raise DataError("the text is empty, so there is nothing to learn from it")
        start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        # As a whole, since a space at the border depends on how the prompt's text continues.
        tokens = tokenizer.encode(prompt + completion)
        before = tokenizer.encode(prompt) if prompt else []
        if tokens[: len(before)] != before:
            raise DataError(
                "the last token of the prompt and the first of the completion become one token when they meet, "
                "which never happens in serving; end the prompt before a space, or use messages"
            )
        end = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        ids = np.array([*start, *tokens, *end], np.int32)
        counted = np.ones((len(ids),), np.bool_)
        # The first token has no token before it to be predicted from.
        counted[: max(len(start) + len(before), 1)] = False
        return Example(ids, counted)


def read_chat_data(data: Data, encoder: ChatEncoder) -> list[Example]:
    """All examples of the data, in order.

    Raises:
      DataError: names the file and the line, or the number of the object, and what was expected.
      OSError: a file cannot be read.
    """
    sources = [data] if isinstance(data, str | Path) else list(data)
    examples: list[Example] = []
    for number, source in enumerate(sources):
        if isinstance(source, Example):
            examples.append(source)
        elif isinstance(source, Mapping):
            examples += _named(f"data[{number}]", encoder, source)
        else:
            for where, record in _lines(Path(source)):
                examples += _named(where, encoder, record)
    if not examples:
        raise DataError(
            f"there are no examples in {', '.join(map(str, sources)) or 'the data'}; {_EXPECTED} in each line"
        )
    return examples


def _named(where: str, encoder: ChatEncoder, record: Mapping[str, Any]) -> list[Example]:
    try:
        return encoder.encode(record)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.expanduser().open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: it is no text in UTF-8 ({error.reason} at byte {error.start})") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: it is no JSON ({error}); expected one object in each line") from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: it is {_short(record)}; {_EXPECTED}")
            yield where, cast("dict[str, Any]", record)


def _is_said(message: dict[str, Any], index: int) -> bool:
    if message.get("role") != "assistant":
        return False
    weight: Any = message.get("weight", 1)
    if type(weight) not in (int, float) or weight not in (0, 1):
        raise DataError(f"the weight of messages[{index}] is {_short(weight)}; expected 0 or 1")
    return bool(weight)


def _without_weights(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f'"{key}" is {_short(value)}; expected a text')
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else text[:37] + "…"
