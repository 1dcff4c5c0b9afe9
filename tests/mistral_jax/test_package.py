"""The installed packages as others see them: names, version, types, and strangers' files of the same names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mistral_jax
from serving.version import DISTRIBUTION, version

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Python as a user of the packages runs it; `path` comes before ours."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{path}:{ROOT}".strip(":"), "HOME": str(cwd)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_version_is_the_distributions_and_the_commands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mistral_jax.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", mistral_jax.__version__)
    assert version() == mistral_jax.__version__
    assert project["project"]["name"] == DISTRIBUTION != "mistral-jax"


def test_every_exported_name_is_there() -> None:
    assert set(mistral_jax._HOMES) | {"__version__"} == set(mistral_jax.__all__) <= set(dir(mistral_jax))
    source = Path(mistral_jax.__file__).read_text("utf-8")
    for name, home in mistral_jax._HOMES.items():
        assert f"    from mistral_jax.{home} import {name} as {name}\n" in source
        assert getattr(mistral_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = mistral_jax.lod


def test_a_type_checker_knows_what_load_returns(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    script = tmp_path / "user.py"
    script.write_text(
        "from typing import assert_type\n"
        "import mistral_jax\n"
        'model = mistral_jax.load("demo")\n'
        "assert_type(model, mistral_jax.LanguageModel)\n"
        'assert_type(model.chat("hi"), str)\n'
        "mistral_jax.lod\n"
    )
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"], "reportMissingModuleSource": false}}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1, done.stdout
    assert '"lod" is not a known attribute' in errors[0]


@pytest.mark.parametrize("form", ["conversion.py", "conversion/__init__.py", "conversion/readme.txt"])
def test_a_strangers_conversion_is_named_in_one_line(tmp_path: Path, form: str) -> None:
    theirs = tmp_path / form
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("")
    (tmp_path / "script.py").write_text("import mistral_jax\n")
    done = python("script.py", cwd=tmp_path)
    if form.endswith(".txt"):  # a folder that is no package hides none that comes later
        assert done.returncode == 0, done.stderr
        return
    *_, last = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert last.startswith("ImportError: mistral_jax needs its own package 'conversion', but Python finds ")
    assert str(tmp_path / "conversion") in last
    assert "rename" in last


def test_one_that_was_imported_before_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "conversion.py").write_text("")
    done = python("-c", "import conversion, mistral_jax", cwd=tmp_path, path=str(tmp_path))
    assert f"Python finds {tmp_path}/conversion.py first" in done.stderr.strip().splitlines()[-1]


def test_the_command_names_a_strangers_serving(tmp_path: Path) -> None:
    (tmp_path / "serving.py").write_text("")
    done = python("-m", "mistral_jax", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: mistral_jax needs its own package 'serving', but Python finds ")
    assert f"{tmp_path}/serving.py" in line


def test_without_strangers_the_command_runs(tmp_path: Path) -> None:
    done = python("-m", "mistral_jax", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"mistral-jax, version {mistral_jax.__version__}\n"), done.stderr


def test_a_wheel_holds_all_that_runs_outside_the_repository(tmp_path: Path) -> None:
    built = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--disable-pip-version-check",
            ),
            *("--wheel-dir", str(tmp_path), str(_copy_of_the_tree(tmp_path / "tree"))),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"mistral_jax_server-{mistral_jax.__version__}-")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    packages = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert packages == {"mistral_jax", "serving", "conversion"}
    assert all((site / package / "py.typed").is_file() for package in packages)
    for folder in ("hub/bundled", "quant/native"):
        there = {path.relative_to(ROOT) for path in (ROOT / "mistral_jax" / folder).rglob("*") if path.is_file()}
        missing = {path for path in there if not (site / path).is_file() and "__pycache__" not in path.parts}
        assert not missing
    script = (
        "import mistral_jax; print(mistral_jax.__file__); "
        "print(mistral_jax.load('demo').chat('What is JAX?', max_tokens=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))


def _copy_of_the_tree(folder: Path) -> Path:
    """What a build reads, so that it leaves nothing behind in the repository."""
    import shutil

    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("mistral_jax", "serving", "conversion"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
