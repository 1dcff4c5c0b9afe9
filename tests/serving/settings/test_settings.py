"""Settings: one declaration each; command line before environment before default; errors that name the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.settings.settings import SPECS, Settings, SettingsError, TokenSource
from serving.settings.spec import TokenKind


def test_defaults() -> None:
    settings = Settings.resolve({}, env={})
    assert settings == Settings()
    assert (settings.port, settings.host, settings.max_seqs, settings.repeat_last_n) == (1234, "127.0.0.1", 8, 64)
    assert settings.model_kind == "demo"
    assert settings.model_id is None
    assert settings.served_id == "demo"


def test_command_line_wins_over_environment_and_environment_over_default() -> None:
    env = {"MISTRAL_JAX_PORT": "4000", "MISTRAL_JAX_MAX_SEQS": "3"}
    settings = Settings.resolve({"port": "5000"}, env=env)
    assert (settings.port, settings.max_seqs, settings.max_queue) == (5000, 3, 128)


def test_a_gguf_file_or_its_repository_chooses_the_kind_and_the_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.Q8_0.gguf"
    path.write_bytes(b"GGUF")
    named = Settings.resolve({"quantized_filename": str(path)}, env={})
    assert (named.model_kind, named.served_id) == ("gguf-mistral", "tiny.Q8_0")
    from_hub = Settings.resolve({"quantized_model_id": "a/b-GGUF", "quantized_filename": "x.gguf"}, env={})
    assert (from_hub.model_kind, from_hub.served_id) == ("gguf-mistral", "a/b-GGUF")
    assert Settings.resolve({}, kind="gguf-mistral", env={}).served_id == "TheBloke/Mistral-7B-Instruct-v0.1-GGUF"


def test_the_forms_of_weights_are_those_that_the_loader_knows() -> None:
    from mistral_jax.quant.plan import ACTIVATIONS, QUANTIZATIONS

    expected = {spec.name: spec.expected for spec in SPECS}
    assert expected["quant"] == "one of " + ", ".join(QUANTIZATIONS)
    assert expected["activations"] == "one of " + ", ".join(ACTIVATIONS)


def test_the_formats_of_tool_calls_are_those_that_are_known() -> None:
    from mistral_jax.chat.output.formats import TOOL_FORMATS

    (spec,) = (spec for spec in SPECS if spec.name == "tool_format")
    assert spec.expected == "one of " + ", ".join(("auto", "none", *TOOL_FORMATS))


def test_empty_variables_count_as_not_set() -> None:
    assert Settings.resolve({}, env={"MISTRAL_JAX_PORT": " ", "MISTRAL_JAX_API_KEYS": ""}) == Settings()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_setting_is_read_from_its_variable(spec) -> None:
    samples = {
        "model_kind": "mistral",
        "lora_folder": ".",
        "port": "0",
        "device": "gpu:1",
        "gpu_memory_utilization": "0.5",
        "dtype": "bfloat16",
        "quant": "q4_k",
        "activations": "int8",
        "pooling": "last",
        "log_level": "error",
        "token_source": "none",
        "tool_format": "hermes",
        "max_body_bytes": "2048",
        "compilation_cache": "none",
    }
    usual = {bool: "no" if spec.default else "yes", int: "17", float: "17"}
    text = samples.get(spec.name, usual.get(spec.type, "value"))
    kind = next((kind for kind in ("mistral", "gguf-mistral", "x-lora-mistral") if kind in spec.option.kinds), None)
    env = {"MISTRAL_JAX_MODEL_ID": "a/b", spec.env: text}
    if spec.name == "spare_loras":
        env["MISTRAL_JAX_LORA_FOLDER"] = "."
    settings = Settings.resolve({}, kind=kind, env=env)
    default = "mistral" if spec.name == "model_kind" else spec.default
    assert getattr(settings, spec.name) != default or spec.name == "model_kind"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("port", "http", "an integer from 0 to 65535"),
        ("port", "65536", "an integer from 0 to 65535"),
        ("max_seqs", "0", "an integer from 1 to 4096"),
        ("drain_timeout", "nan", "a number from 0 to"),
        ("dtype", "int3", "one of auto, float32, bfloat16, float16"),
        ("quant", "q3", "one of none, auto, q8_0, q4_0, q4_k, int8"),
        ("activations", "int4", "one of auto, float, int8"),
        ("device", "tpu", "auto, cpu, gpu or gpu:N"),
        ("truncate_sequence", "perhaps", "true or false"),
        ("token_source", "literal:", "cache, env, env:NAME, literal:VALUE, path:FILE or none"),
        ("served_name", "two words", "a name without spaces"),
    ],
)
def test_bad_values_name_flag_or_variable_and_what_was_expected(name: str, text: str, expected: str) -> None:
    spec = next(spec for spec in SPECS if spec.name == name)
    with pytest.raises(SettingsError) as from_line:
        Settings.resolve({name: text}, env={})
    with pytest.raises(SettingsError) as from_env:
        Settings.resolve({}, env={spec.env: text})
    assert str(from_line.value).startswith(spec.option.flags[0] + ": ")
    assert str(from_env.value).startswith(spec.env + ": ")
    for error in (from_line, from_env):
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
        assert name == "token_source" or text in str(error.value)


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(SettingsError, match="max_queue: 0"):
        Settings(max_queue=0)
    with pytest.raises(SettingsError, match="demo has its own model"):
        Settings(model_id="a/b")


def test_a_model_id_makes_it_a_mistral_and_mistral_has_a_default_model() -> None:
    assert Settings.from_env({"MISTRAL_JAX_MODEL_ID": "a/b"}).model_kind == "mistral"
    settings = Settings.from_env({"MISTRAL_JAX_MODEL_KIND": "mistral"})
    assert settings.model_id == settings.served_id == "mistralai/Mistral-7B-Instruct-v0.1"
    assert Settings.resolve({}, kind="demo", env={"MISTRAL_JAX_MODEL_ID": "a/b"}).model_id is None


def test_an_option_that_cannot_apply_is_refused_not_ignored() -> None:
    with pytest.raises(SettingsError, match="--weight-file"):
        Settings.resolve({"weight_files": ("w.safetensors",)}, env={})


def test_lists_from_repeated_flags_and_from_commas() -> None:
    given = {"model_id": "a/b", "weight_files": ("a.safetensors", "b, c.safetensors")}
    assert Settings.resolve(given, env={}).weight_files == ("a.safetensors", "b, c.safetensors")
    assert Settings.from_env({"MISTRAL_JAX_API_KEYS": "one, two,"}).api_keys == ("one", "two")


def test_served_id_of_a_local_path_is_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert Settings(model_kind="mistral", model_id=str(tmp_path / "tiny")).served_id == "tiny"
    assert Settings(model_kind="mistral", model_id="a/b", served_name="mine").served_id == "mine"
    blob = tmp_path / "0123abcd"  # the cache of the Hub names files by their contents, and links to them by name
    blob.write_bytes(b"GGUF")
    (tmp_path / "a.Q4_0.gguf").symlink_to(blob)
    assert Settings(model_kind="mistral", model_id=str(tmp_path / "a.Q4_0.gguf")).served_id == "a.Q4_0"


def test_a_name_that_a_shell_left_empty_does_not_serve_another_model() -> None:
    with pytest.raises(SettingsError, match="--model-id: '' is not valid; expected a name that is not empty"):
        Settings.resolve({"model_id": ""}, kind="mistral", env={})
    with pytest.raises(SettingsError, match="--quantized-filename: ' ' is not valid"):
        Settings.resolve({"quantized_filename": " "}, kind="gguf-mistral", env={})


def test_options_of_another_kind_of_model_are_refused_with_the_reason() -> None:
    with pytest.raises(SettingsError, match="--quantized-filename: --model-id names the model already"):
        Settings.resolve({"model_id": "a/b", "quantized_filename": "x.gguf"}, env={})
    with pytest.raises(SettingsError, match="--weight-file: this option is for models that are named by --model-id"):
        Settings.resolve({"quantized_model_id": "a/b", "weight_files": ("x.gguf",)}, env={})
    with pytest.raises(SettingsError, match="--weight-file: only a model of your own"):
        Settings.resolve({"weight_files": ("x.gguf",)}, env={})


def test_secrets_are_never_printed() -> None:
    settings = Settings.from_env({"MISTRAL_JAX_API_KEYS": "sk-secret", "MISTRAL_JAX_TOKEN_SOURCE": "literal:hf_secret"})
    for text in (repr(settings), str(settings), str(settings.described()), f"{settings.token_source!r}"):
        assert "secret" not in text
    with pytest.raises(SettingsError) as error:
        Settings.from_env({"MISTRAL_JAX_API_KEYS": "secret with spaces"})
    assert "secret" not in str(error.value)


def test_token_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("hf_file\n")
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    monkeypatch.setenv("OTHER", "hf_other")
    assert TokenSource.parse("cache").token() is None
    assert TokenSource.parse("none").token() is False
    assert TokenSource.parse("env").token() == "hf_env"
    assert TokenSource.parse("env:OTHER").token() == "hf_other"
    assert TokenSource.parse("literal:hf_a:b").token() == "hf_a:b"
    assert TokenSource.parse(f"path:{file}").token() == "hf_file"
    assert TokenSource.parse("literal:x").kind is TokenKind.LITERAL


def test_token_sources_that_give_nothing_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "empty").write_text("\n")
    for source, problem in (
        ("env", "HF_TOKEN is not set"),
        (f"path:{tmp_path / 'missing'}", "cannot read the file"),
        (f"path:{tmp_path / 'empty'}", "is empty"),
    ):
        with pytest.raises(SettingsError, match=problem):
            TokenSource.parse(source).token()


def test_compilation_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert Settings().compilation_cache_dir == Path("/var/cache/me/mistral-jax/xla")
    assert Settings(compilation_cache="none").compilation_cache_dir is None
    assert Settings(compilation_cache="/srv/xla").compilation_cache_dir == Path("/srv/xla")


@pytest.mark.parametrize(
    ("given", "kind", "served", "base"),
    [
        ({"xlora_model_id": "a/x"}, "x-lora-mistral", "a/x", "base"),
        ({"xlora_model_id": "a/x", "model_id": "a/b"}, "x-lora-mistral", "a/x", "a/b"),
        ({"xlora_model_id": "a/x", "quantized_model_id": "a/g"}, "x-lora-gguf-mistral", "a/x", "a/g"),
        ({"loras": ("n=p",)}, "lora-mistral", "demo", "demo"),
        ({"loras": ("n=p",), "model_id": "a/b"}, "lora-mistral", "a/b", "a/b"),
        ({"lora_folder": ".", "quantized_model_id": "a/g"}, "lora-gguf-mistral", "a/g", "a/g"),
    ],
)
def test_adapters_choose_the_kind_where_no_command_does(given, kind: str, served: str, base: str) -> None:
    settings = Settings.resolve(given, env={})
    assert (settings.model_kind, settings.served_id, settings.base_id) == (kind, served, base)


def test_kinds_with_adapters_have_defaults_of_their_own() -> None:
    xlora = Settings.resolve({}, kind="x-lora-mistral", env={})
    assert (xlora.served_id, xlora.model_id) == ("lamm-mit/x-lora", None)  # its configuration names the base
    lora = Settings.resolve({"loras": ("n=p",)}, kind="lora-mistral", env={})
    assert lora.model_id == "mistralai/Mistral-7B-Instruct-v0.1"
    gguf = Settings.resolve({}, kind="x-lora-gguf-mistral", env={})
    assert gguf.default_gguf == ("TheBloke/zephyr-7B-beta-GGUF", "zephyr-7b-beta.Q8_0.gguf")
    assert (lora.room_for_loras, lora.max_lora_rank) == (0, 16)


def test_adapters_are_named_by_the_user_or_by_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "poet").mkdir()
    (tmp_path / "a=b").mkdir()
    loras = ("cook=lab/cook-7b", str(tmp_path / "poet"), "lab/clerk", str(tmp_path / "a=b"))
    settings = Settings(model_kind="lora-mistral", loras=loras)
    assert settings.lora_sources == {
        "cook": "lab/cook-7b",
        "poet": str(tmp_path / "poet"),
        "clerk": "lab/clerk",
        "a=b": str(tmp_path / "a=b"),
    }


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"xlora_kv_cache": False, "tgt_non_granular_index": "1"},
            "x-lora-mistral",
            "--no-xlora-kv-cache and --tgt-non-granular-index exclude each other",
        ),
        ({"tgt_non_granular_index": "0"}, "x-lora-mistral", "--tgt-non-granular-index: '0' is not valid"),
        ({}, "lora-mistral", "--lora: no adapter is named"),
        ({"loras": ("a=x", "a=y")}, "lora-mistral", "two adapters are called 'a'"),
        ({"loras": ("x/a", "y/a")}, "lora-mistral", "two adapters are called 'a'"),
        ({"loras": ("=x",)}, "lora-mistral", "--lora: '=x' is not valid"),
        ({"loras": ("a b=x",)}, "lora-mistral", "--lora: 'a b=x' is not valid"),
        ({"spare_loras": "2", "loras": ("a=x",)}, "lora-mistral", "--spare-loras: adapters can be loaded only from"),
        ({"lora_folder": "no such folder"}, "lora-mistral", "--lora-folder no such folder: there is no such folder"),
        ({"xlora_model_id": "a/x"}, "x-lora-gguf-mistral", "name the GGUF file of its base model, too"),
        ({"order": "o.json"}, "mistral", "--order: only an X-LoRA model has this option"),
        ({"loras": ("a=x",)}, "mistral", "--lora: only a model with adapters has this option"),
        ({"tgt_non_granular_index": "1", "loras": ("a=x",)}, "lora-mistral", "only an X-LoRA model has this option"),
    ],
)
def test_settings_of_adapters_that_do_not_go_together_are_refused(given, kind, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.resolve(given, kind=kind, env={})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
