"""What is known of GGUF files before their weights are read, where the file is not the only one that speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from conversion.gguf.container.file import GGUFFile
from conversion.to_safetensors import convert_to_safetensors
from mistral_jax.chat import ChatTemplateError
from mistral_jax.checkpoint.description import describe
from mistral_jax.hub.files import find_model
from tests.conversion.gguf_files import rewritten

NARROW = Path(__file__).parents[2] / "goldens" / "gguf" / "narrow.Q8_0.gguf"
TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"
ENDS_TURNS = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose token 4 is `<|im_end|>`, and that has no template."""
    with GGUFFile(NARROW) as file:
        tokens = list(file.metadata[TOKENS])
    tokens[3:5] = ["<|im_start|>", "<|im_end|>"]
    return rewritten(NARROW, tmp_path / "x.gguf", {TOKENS: tokens, TEMPLATE: None})


def test_the_template_of_another_tokenizer_tells_what_ends_an_answer(path: Path, tmp_path: Path) -> None:
    assert describe(find_model(str(path))).eos_ids == {2}
    assert describe(find_model(str(path)), chat_template=ENDS_TURNS).eos_ids == {2, 4}
    folder = tmp_path / "original"
    convert_to_safetensors(path, folder)
    (folder / "chat_template.jinja").write_text(ENDS_TURNS)
    described = describe(find_model(str(path), tokenizer_id=str(folder)))
    assert described.chat is not None
    assert described.eos_ids == {2, 4}


def test_tokens_of_a_format_that_are_not_all_there_make_no_chat_format(tmp_path: Path) -> None:
    # It has [INST] and [/INST] only, which the formats with control tokens do not get by with.
    path = rewritten(NARROW, tmp_path / "x.gguf", {TEMPLATE: None})
    assert describe(find_model(str(path))).chat is None


def test_a_broken_template_is_told_with_its_remedy(tmp_path: Path) -> None:
    path = rewritten(NARROW, tmp_path / "x.gguf", {TEMPLATE: "{% if %}"})
    with pytest.raises(ChatTemplateError, match=r"broken in line 1.*--chat-template"):
        describe(find_model(str(path)))
    assert describe(find_model(str(path)), chat_template="{{ messages[0].content }}").chat is not None
