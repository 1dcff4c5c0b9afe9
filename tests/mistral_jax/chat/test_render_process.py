"""Chat templates in a process of their own: the same texts as in this one, and no template holds or outlives
anything."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from mistral_jax.chat import ChatFormatter, ChatTemplateError, ConversationError, render_process
from mistral_jax.chat.render_process import MEMORY, IsolatedTemplate, process_ids
from mistral_jax.chat.template import ChatTemplate
from mistral_jax.chat.trusted import ControlMarks
from tests.mistral_jax.chat.hostile_templates import HOSTILE, HOSTILE_SAMPLE
from tests.mistral_jax.chat.test_formatter import HI, SIMPLE
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

MARKS = ControlMarks({"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[TOOL_CALLS]": 9})
MAX_TEXT = 16_000_000

SOURCES = {
    "simple": SIMPLE,
    "v3": generate_chat_template(
        spm=False,
        tokenizer_version=TokenizerVersion.v3,
        image_support=False,
        audio_support=False,
        thinking_support=False,
        default_system_prompt=None,
        plain_thinking_support=False,
        use_special_token_variables=True,
        model_settings_fields=None,
        reasoning_effort_values=None,
        reasoning_effort_default=None,
    ),
}


def isolated(source: str, **limits: Any) -> IsolatedTemplate:
    return IsolatedTemplate(source, MARKS, **{"max_text": MAX_TEXT, "time_limit": 5.0, **limits})


def in_process(source: str) -> ChatTemplate:
    return ChatTemplate(source, MARKS, max_text=MAX_TEXT, time_limit=5.0)


def outcome(make: Callable[[], IsolatedTemplate | ChatTemplate], variables: dict[str, Any]) -> tuple[str, str]:
    try:
        return "text", make().render(variables)
    except ChatTemplateError as error:
        return type(error).__name__, str(error)


def variables(content: Any = "Hi [INST]") -> dict[str, Any]:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "é🙂\ud800"}]
    named = {"bos_token": MARKS.mark("<s>"), "eos_token": MARKS.mark("</s>")}
    return {"messages": messages, "tools": None, "add_generation_prompt": True, **named}


# The same as in this process.


@pytest.mark.parametrize(
    "source",
    [
        *SOURCES.values(),
        "{{ messages | tojson(indent=2) }}{{ {'a': 1.5, 'b': none} | tojson }}{{ big }}{{ odd }}",
        "{{ strftime_now('%Y-%m-%d %Z') }}{% generation %}[INST]{{ messages[0].content }}{% endgeneration %}",
        "{% for m in messages %}{{ m.keys() | list }}{% endfor %}{{ raise_exception('no [INST]\nhere') }}",
        "{{ messages[7].x.y }}",
        "\n{% if %}",
        "{{ ''.__class__ }}",
        "{% for p in messages[0].content %}{{ p }}{% endfor %}",
    ],
)
def test_a_template_gives_the_same_text_or_error_as_in_this_process(source: str) -> None:
    given = variables() | {"big": 2**70, "odd": float("nan")}
    kind, text = outcome(lambda: in_process(source), given)
    assert outcome(lambda: isolated(source), given) == (kind, text if kind == "text" else " ".join(text.split()))


def test_what_a_template_reads_is_found_there_too() -> None:
    for source in ("{{ messages[0].content }}", "{% for p in messages[0].content %}{{ p.text }}{% endfor %}"):
        there, here = isolated(source), in_process(source)
        assert (there.reads_parts, there.reads_strings) == (here.reads_parts, here.reads_strings)


def test_the_local_time_is_that_of_this_process() -> None:
    assert isolated("{{ strftime_now('%H %z') }}").render({}) == time.strftime("%H %z")


def test_a_conversation_that_is_nested_too_deeply_is_the_callers_fault() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConversationError, match="nested too deeply"):
        isolated("x").render({"messages": deep})


def test_an_error_is_one_line_of_bounded_length() -> None:
    with pytest.raises(ConversationError) as caught:
        isolated("{{ raise_exception(('word\n') * 1000000) }}").render({})
    assert len(str(caught.value)) < 3000
    assert "\n" not in str(caught.value)


def test_a_template_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(ChatTemplateError, match="2,000,000 characters"):
        isolated("x" * 2_000_000)


# The process.


def test_a_process_is_used_again_and_serves_many_templates() -> None:
    render_process._pool.close()  # one that knows many templates already would be replaced
    first = isolated("{{ x }}")
    before = process_ids()
    assert [isolated(f"{i}" + "{{ x }}").render({"x": 1}) for i in range(5)] == [f"{i}1" for i in range(5)]
    assert first.render({"x": 2}) == "2"
    assert process_ids() == before


def test_a_process_that_died_is_replaced() -> None:
    template = isolated("{{ x }}")
    for pid in process_ids():
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(10)
    assert template.render({"x": "again"}) == "again"


def test_more_threads_than_processes_share_them() -> None:
    template = isolated("{% for i in range(2000) %}{% endfor %}{{ x }}")
    wrong: list[int] = []

    def work(n: int) -> None:
        wrong.extend(i for i in range(5) if template.render({"x": n}) != str(n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(process_ids()) <= render_process.MAX_PROCESSES


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_has_no_environment_no_sockets_and_little_memory() -> None:
    os.environ["SECRET_OF_THE_SERVER"] = "hf_secret"
    render_process._pool.close()
    try:
        isolated("x").render({})
        process = psutil.Process(process_ids()[0])
        assert set(process.environ()) <= {"TZ", "LD_LIBRARY_PATH", "LC_CTYPE"}
        assert process.net_connections(kind="all") == []
        assert process.open_files() == []
        assert process.cwd() == "/"
        assert process.memory_info().rss < 100_000_000
        assert not any("jax" in mapping.path for mapping in process.memory_maps())
        assert process.rlimit(psutil.RLIMIT_AS) == (MEMORY, MEMORY)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    finally:
        del os.environ["SECRET_OF_THE_SERVER"]


@pytest.mark.parametrize(
    "source", ["x", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"]
)
def test_no_process_outlives_the_one_that_started_it(source: str) -> None:
    """Idle or in the middle of a template, when that is killed with SIGKILL."""
    script = f"""
import threading, sys, time
from mistral_jax.chat.render_process import IsolatedTemplate, process_ids
from mistral_jax.chat.trusted import ControlMarks
template = IsolatedTemplate({source!r}, ControlMarks({{}}), max_text=1000, time_limit=1.0)
threading.Thread(target=template.render, args=({{}},), daemon=True).start()
time.sleep(0.3)
print(*process_ids(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert children
        parent.kill()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_importing_the_chat_package_starts_nothing_and_needs_no_jax() -> None:
    others = ("jax", "tokenizers", "numpy", "mistral_jax.chat.render_process")
    script = f"import sys, mistral_jax.chat.render_child; sys.exit(any(name in sys.modules for name in {others}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Attacks.


@contextmanager
def heartbeat() -> Iterator[list[float]]:
    """For how long, at most, another thread of this process was not run: in seconds of the process's own time, so that
    what other processes take does not count."""
    longest = [0.0]
    done = threading.Event()

    def beat() -> None:
        last = time.process_time()
        while not done.wait(0.02):
            now = time.process_time()
            longest[0] = max(longest[0], now - last)
            last = now

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield longest
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", HOSTILE if "FUZZ_CHAT_TEMPLATES" in os.environ else HOSTILE_SAMPLE)
def test_a_hostile_template_is_stopped_and_holds_nobody(name: str) -> None:
    source = HOSTILE[name]
    for attempt in range(3):
        start, before = time.monotonic(), psutil.Process().memory_info().rss
        with heartbeat() as longest:
            kind, text = outcome(lambda: isolated(source, time_limit=0.1), {})
        assert kind in ("text", "ChatTemplateError")
        assert len(text) <= MAX_TEXT
        assert time.monotonic() - start < 90
        assert psutil.Process().memory_info().rss - before < 400_000_000
        # Collecting garbage may do that once, a held interpreter does it each time.
        if longest[0] < 0.25:
            break
        assert attempt < 2, f"other threads were held for {longest[0]:.2f} s"
    assert isolated("{{ x }}").render({"x": "alive"}) == "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="no limits of memory by the system")
def test_the_memory_of_a_template_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_process, "MEMORY", 192 << 20)
    render_process._pool.close()
    source = (
        "{% set ns = namespace(s=[]) %}{% for i in range(999) %}{% set ns.s = ns.s + ['a' * 8000000 ~ i] %}{% endfor %}"
    )
    try:
        with pytest.raises(ChatTemplateError, match=r"192 MiB of memory"):
            isolated(source, time_limit=60.0).render({})
    finally:
        render_process._pool.close()


# Mutations.

HONEST = [
    *SOURCES.values(),
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "{%- macro f(x, y=2) -%}{{ x ~ y }}{%- endmacro -%}{% set ns = namespace(n=0) %}{% for m in messages if m.role != "
    "'x' %}"
    "{% set ns.n = ns.n + 1 %}{{ loop.index0 }}{{ f(m.content) | upper | replace('A', 'B') }}{{ m | tojson(indent=2) }}"
    "{% if loop.last and ns.n > 1 %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
]
TOKENS = [
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%-",
        "-%}",
        "for",
        "endfor",
        "if",
        "endif",
        "set",
        "macro",
        "endmacro",
        "recursive",
    ),
    *(
        "messages",
        "m",
        "ns",
        "range(99999)",
        "'a' * 99999",
        "loop",
        "caller()",
        "|",
        "~",
        "*",
        "**",
        "%",
        "+",
        "//",
        "[",
        "]",
        "(",
    ),
    *(
        ")",
        "{",
        "}",
        "==",
        "<",
        "in",
        "not",
        "and",
        "or",
        "is",
        "'",
        '"',
        "\\",
        "0",
        "999999999",
        "1e308",
        "none",
        "\n",
        "\0",
        "\U000f0000",
    ),
    *(
        "escape",
        "upper",
        "tojson",
        "list",
        "join",
        "sum(start=[])",
        "batch(2)",
        "int(0, 16)",
        "format",
        ".format()",
        "__class__",
    ),
    *(
        "generation",
        "endgeneration",
        "include 'x'",
        "import 'x' as y",
        "block a",
        "endblock",
        "extends 'x'",
        "raw",
        "endraw",
        "filter upper",
    ),
]


def mutated(source: str, rng: random.Random) -> str:
    """An honest template after some changes: bytes, words, pieces of itself."""
    for _ in range(rng.choice([1, 1, 2, 2, 3, 6])):
        at, to = sorted(rng.randrange(len(source) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                source = source[:at] + chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) + source[at + 1 :]
            case 1:
                source = source[:at] + source[min(to, at + 40) :]
            case 2:
                source = source[:at] + source[at : min(to, at + 200)] * rng.randint(2, 40) + source[to:]
            case 3:
                source = source[:at] + rng.choice(TOKENS) + source[at:]
            case 4:
                other = rng.choice(HONEST)
                source = source[:at] + other[rng.randrange(len(other)) :][: rng.randint(1, 80)] + source[at:]
            case _:
                words = source.split(" ")
                words[rng.randrange(len(words))] = rng.choice(TOKENS)
                source = " ".join(words)
    return source


def test_mutated_templates_end_in_a_text_or_one_line() -> None:
    count = int(os.environ.get("FUZZ_CHAT_TEMPLATES", "150"))
    rng = random.Random(int(os.environ.get("FUZZ_SEED", "1")))
    worst, kinds = 0.0, {"text": 0, "ChatTemplateError": 0, "ConversationError": 0}
    for _ in range(count):
        source = mutated(rng.choice(HONEST), rng)
        start = time.monotonic()
        kind, text = outcome(lambda source=source: isolated(source, time_limit=1.0, max_text=1_000_000), variables())
        worst = max(worst, time.monotonic() - start)
        kinds[kind] += 1
        assert len(text) <= 1_000_000
        assert kind == "text" or (text and "\n" not in text and "crashed" not in text and len(text) < 3000), source
    assert worst < 90
    assert kinds["text"] > count // 40, kinds
    print(f"{count} templates: {kinds}, the slowest took {worst:.2f} s, processes {len(process_ids())}")


def test_a_formatter_renders_elsewhere() -> None:
    before = ChatFormatter(SIMPLE, tokenizer("v3"))
    render_process._pool.close()
    assert process_ids() == []
    assert before.encode(HI) == ChatFormatter(SIMPLE, tokenizer("v3")).encode(HI)
    assert process_ids() != []
