"""Chat templates: what runs in them, and what requests may do to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jinja2
import pytest

from mistral_jax.chat import ChatFormatter
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from serving.api.service.service import Service
from tests.mistral_jax.chat.hostile_templates import HOSTILE
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer
from tests.serving.fakes import CARD, FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, running
from tests.serving.security.server_code import calls, modules

pytestmark = pytest.mark.anyio

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}{{ m.name }}]{{ m.content }}{% endfor %}"
    "{% for d in documents or [] %}({{ d.text }}){% endfor %}{{ mood }}"
)
ESCAPES = (
    "{{ 7 * 7 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% set x = lipsum.__globals__ %}{{ x }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ ('%c' % 95) * 2 }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{{ self._TemplateReference__context }}",
)


def service(template: str) -> Service:
    vocabulary = tokenizer("v3")
    assert isinstance(vocabulary, ByteTableTokenizer)
    chat = ChatFormatter(template, vocabulary, time_limit=1.0)
    card = replace(CARD, max_model_len=4096, vocab_size=vocabulary.vocab_size)
    return replace(fake_service(FakeEngine("ok"), card=card), tokenizer=vocabulary, chat=chat)


@pytest.mark.parametrize("text", ESCAPES)
async def test_chat_template_ssti_texts_of_requests_are_never_templates(text: str) -> None:
    async with running(service=service(PLAIN)) as client:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text, "name": text}]}
        rendered = (await client.post("/apply-template", json=body)).json()["prompt"]
        assert rendered == f"<s>[user{text}]{text}"
        body |= {"documents": [{"text": text}], "chat_template_kwargs": {"mood": text}, "max_tokens": 1}
        response = await client.post(CHAT, json=body | {"return_token_ids": True})
        ids = response.json()["prompt_token_ids"]
        told = (await client.post("/detokenize", json={"tokens": ids})).json()["content"]
    assert told.count(text) == 4


@pytest.mark.parametrize("text", ESCAPES[1:])
async def test_chat_template_ssti_hostile_templates_of_models_raise_and_never_run(text: str) -> None:
    """They come with model files. The response is an error of one line, or the text of a template that does no harm."""
    async with running(service=service(text)) as client:
        response = await client.post("/apply-template", json={"messages": MESSAGES})
        assert response.status_code in (200, 400)
        assert "uid=" not in response.text
        assert "root:" not in response.text
        assert "subclass" not in response.json().get("prompt", "")
        assert (await client.get("/health")).status_code == 200


def test_chat_template_ssti_every_environment_is_an_immutable_sandbox() -> None:
    for path, tree in modules().items():
        for name, _ in calls(tree):
            assert name not in ("jinja2.Environment", "Environment", "jinja2.Template", "Template"), path
            assert name.rpartition(".")[2] not in ("NativeEnvironment", "SandboxedEnvironment"), path


def test_chat_template_ssti_jinja_has_the_fixes_of_its_escapes() -> None:
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3])
    assert version >= (3, 1, 6)


@pytest.mark.parametrize("path", [CHAT, "/apply-template", "/tokenize"])
async def test_template_cpu_bombs_requests_bring_no_templates(path: str) -> None:
    engine = FakeEngine()
    async with running(engine) as client:
        for template in ("{{ x }}", HOSTILE["a format of braces"], ["{{ x }}"], {"default": "x"}):
            response = await client.post(path, json={"messages": MESSAGES, "chat_template": template})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "chat_template"
    assert engine.submitted == []


RESERVED = (
    *("chat_template", "tokenize", "tools", "documents", "messages", "conversation", "continue_final_message"),
    *("add_generation_prompt", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("bos_token", "eos_token", "self", "raise_exception", "strftime_now", "range", "namespace"),
)


@pytest.mark.parametrize("name", RESERVED)
async def test_template_cpu_bombs_variables_cannot_replace_machinery(name: str) -> None:
    engine = FakeEngine()
    async with running(engine, service=service(PLAIN)) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES, "chat_template_kwargs": {name: "{{ 1 }}"}})
    if response.status_code == 200:
        assert name in response.headers["x-ignored-fields"]
    else:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chat_template_kwargs"


@pytest.mark.parametrize(
    "variables",
    [
        {"mood": "x" * 20_000},
        {f"v{index}": 1 for index in range(200)},
        {"mood": [[[[[[[[[[1]]]]]]]]]]},
        {"mood": {"a": list(range(200))}},
    ],
    ids=["bytes", "names", "levels", "values"],
)
async def test_template_cpu_bombs_variables_are_bounded(variables: dict[str, Any]) -> None:
    async with running(service=service(PLAIN)) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES, "chat_template_kwargs": variables})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"
