"""Unsafe deserialisation, remote code by model files, GGUF parsers, paths that lead outside."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.errors import InvalidRequestError, NotFoundError
from serving.build.adapter_loader import inside
from tests.serving.harness import running
from tests.serving.security.server_code import calls, imports, is_of, modules

UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "torch", "yaml", "jsonpickle"}
MARSHALLING = {"marshal": {"mistral_jax/chat/render_child.py"}}
"""The process that renders templates reads what its parent sends it; the parent reads plain text."""
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "builtins.eval", "builtins.exec"}
STARTING = {"subprocess": {"mistral_jax/chat/render_process.py", "mistral_jax/quant/native/native.py"}}
"""Processes are started to render templates, and to compile our own C++; both with fixed arguments."""


def test_unsafe_deserialisation_nothing_in_the_server_process_unpickles() -> None:
    for path, tree in modules().items():
        for name in imports(tree):
            assert not is_of(name, UNPICKLING), f"{path} imports {name}"
            for module, allowed in MARSHALLING.items():
                assert not is_of(name, {module}) or path in allowed, f"{path} imports {name}"
        for name, call in calls(tree):
            assert name.rpartition(".")[2] != "read_pickle", path
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            assert options.get("allow_pickle", "False") == "False", path


def test_unsafe_deserialisation_embeddings_are_no_prompts() -> None:
    names = {field.name for endpoint in _endpoints() for field in endpoint.fields or () if field.decision == "honoured"}
    assert not names & {"prompt_embeds", "image_embeds", "custom_logit_processor"}


def test_remote_code_nothing_in_the_server_process_runs_texts() -> None:
    for path, tree in modules().items():
        for name, call in calls(tree):
            assert name not in RUNNING, f"{path} calls {name}"
            assert not any(option.arg == "shell" for option in call.keywords), path
            assert not any(option.arg == "trust_remote_code" for option in call.keywords), path
        for name in imports(tree):
            for module, allowed in STARTING.items():
                assert not is_of(name, {module}) or path in allowed, f"{path} imports {name}"


def test_remote_code_modules_are_not_imported_by_name() -> None:
    """Only our own packages import some of their modules when they are used first, and the commands theirs."""
    allowed = {f"mistral_jax/{folder}__init__.py" for folder in ("", "chat/", "training/")}
    for path, tree in modules().items():
        if path not in allowed and not path.startswith("serving/commands/"):
            names = {name.rpartition(".")[2] for name, _ in calls(tree)}
            assert not names & {"import_module", "exec_module", "find_spec", "module_from_spec"} or path in SHADOWING


SHADOWING = {"mistral_jax/shadowing.py"}
"""It looks whether `serving` and `conversion` are ours, without importing them."""


def test_remote_code_assert_guards_nothing_from_requests() -> None:
    """`python -O` leaves asserts out: where requests are read, they may only narrow types."""
    for path, tree in modules().items():
        if not path.startswith("serving/api/requests/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                told = ast.unparse(node.test)
                assert told.endswith("is not None") or told.startswith("isinstance("), f"{path}: assert {told}"


def _endpoints() -> tuple[Any, ...]:
    from serving.api.endpoints import ENDPOINTS

    return ENDPOINTS


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters, with links that lead out of it, beside a secret."""
    root = tmp_path_factory.mktemp("root").resolve()
    for name in ("loras/poet/deep", "secret", "loras-2"):
        (root / name).mkdir(parents=True)
    for name in ("loras/poet", "loras/poet/deep", "secret", "loras-2"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (root / name / file).write_text("{}")
    (root / "loras" / "out").symlink_to(root / "secret")
    (root / "loras" / "up").symlink_to("..")
    (root / "loras" / "loop").symlink_to("loop")
    (root / "loras" / "half").mkdir()
    (root / "loras" / "half" / "adapter_model.safetensors").symlink_to(root / "secret" / "adapter_model.safetensors")
    return root / "loras"


PARTS = st.sampled_from(
    (
        *(
            "poet",
            "deep",
            "out",
            "up",
            "loop",
            "half",
            "secret",
            "loras",
            "loras-2",
            "..",
            ".",
            "",
            "/",
            "//",
            "~",
            "~root",
        ),
        *(
            "\\",
            "\0",
            "%2e%2e",
            "%2f",
            "..\\",
            "...",
            " ..",
            ".. ",
            "．．",
            "adapter_config.json",
            "C:",
            "file:",
            "\u2215",
        ),
    )
)


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(PARTS, max_size=6), absolute=st.sampled_from(("", "/", "ROOT/", "ROOT/../", "ROOT-2/", "ROOT/up/"))
)
def test_path_traversal_whatever_a_path_says_it_stays_in_the_folder(
    loras: Path, parts: list[str], absolute: str
) -> None:
    path = absolute.replace("ROOT", str(loras)) + "/".join(parts)
    try:
        found = inside(loras, path, (loras,))
    except (InvalidRequestError, NotFoundError):
        return
    assert found.is_relative_to(loras)
    assert found != loras
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (found / file).resolve().is_relative_to(loras)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd"]
)
async def test_path_traversal_names_in_addresses_are_names_only(path: str) -> None:
    async with running() as client:
        for prefix in ("/v1/models/", "/docs/", "/", "/v1/requests/"):
            response = await client.get(f"http://localhost:1234{prefix}{path}")
            assert response.status_code in (404, 405)
            assert "root:" not in response.text


@pytest.mark.anyio
async def test_path_traversal_no_request_saves_anything() -> None:
    async with running(slots_endpoint=True) as client:
        for action in ("save", "restore", "erase"):
            response = await client.post(f"/slots/0?action={action}", json={"filename": "../../x"})
            assert response.status_code in (404, 405)
