"""From a user's name of a model (a folder, a file, a Hub id) to files on this machine.

Two steps, so that a server can check the small files before it downloads gigabytes: `find_model` fetches configuration
and tokenizer, `ModelFiles.fetch_weights` the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conversion.files.regular_file import is_file, is_folder
from conversion.hub_id import HUB_ID
from conversion.weights.weight_files import find_weight_files, has_configuration, is_first_part, is_gguf, parts_pattern

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "bundled" / "demo"
DEMO_XLORA = "demo-xlora"
DEMO_XLORA_FOLDER = Path(__file__).parent / "bundled" / "demo-xlora"
DEMO_TOOLS = "demo-tools"
DEMO_TOOLS_FOLDER = Path(__file__).parent / "bundled" / "demo-tools"
BUNDLED_ADAPTERS = {DEMO_XLORA: DEMO_XLORA_FOLDER, DEMO_TOOLS: DEMO_TOOLS_FOLDER}
"""Folders of the bundled mixture and of the bundled LoRA, by name."""

_METADATA = [
    "config.json",
    "params.json",
    "generation_config.json",
    "tokenizer*",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.safetensors.index.json",
]
_ADAPTERS = [
    "*adapter_config.json",
    "*adapter_model.safetensors",
    "*xlora_config.json",
    "*xlora_classifier.safetensors",
]
"""Patterns that match in any folder of a repository, which may also contain full models."""


class ModelNotFoundError(OSError):
    """A model, or a file of it, cannot be found or fetched."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a model's files are."""

    name: str
    """The name that the user gave."""
    folder: Path
    """The folder with configuration and tokenizer."""
    repo_id: str | None = None
    """Set for models from the Hub, whose weights may not have been downloaded yet."""
    revision: str | None = None
    token: str | bool | None = None
    weight_files: tuple[str, ...] = ()
    """Files to read instead of the model's own: paths, or names in the model's folder or repository."""
    gguf: Path | None = None
    """A local GGUF file, or the first part of one, with weights, configuration and tokenizer."""
    tokenizer_folder: Path | None = None
    """The model whose tokenizer and chat template are used instead of its own."""

    def fetch_weights(self) -> list[Path]:
        """Paths of the weight files, downloaded first where they are missing.

        Raises:
          ModelNotFoundError, WeightFileError: a file does not exist, or cannot be downloaded.
        """
        if self.gguf is not None:
            return [self.gguf]
        if self.weight_files:
            return [self._weight_file(name) for name in self.weight_files]
        if self.repo_id is not None:
            own_format = not is_file(self.folder / "config.json") and is_file(self.folder / "params.json")
            folder = self._download(["consolidated*.safetensors" if own_format else "model*.safetensors"])
            return find_weight_files(folder)
        return find_weight_files(self.folder)

    def _weight_file(self, name: str) -> Path:
        for path in (Path(name).expanduser(), self.folder / name):
            if is_file(path):
                return path
        if self.repo_id is None:
            raise ModelNotFoundError(f"weight file {name!r} is neither a file here nor in {self.folder}")
        if is_file(path := self._download([name]) / name):
            return path
        raise ModelNotFoundError(f"weight file {name!r} is neither a file here nor in the repository {self.repo_id}")

    def _download(self, patterns: list[str]) -> Path:
        assert self.repo_id is not None
        # The commit of the configuration, which is the folder's name: a branch may have moved on.
        return _snapshot(self.repo_id, patterns, revision=self.folder.name, token=self.token)


def find_model(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    weight_files: Sequence[str] = (),
    tokenizer_id: str | None = None,
) -> ModelFiles:
    """Find a model and download its small files.

    Args:
      name: "demo" (the bundled model; write "./demo" for a folder of that name), a folder, a GGUF file, a single
        safetensors file beside its configuration, or a Hub id. A folder or repository may also hold GGUF files and no
        model in another format.
      revision: branch, tag or commit, for Hub ids.
      token: a Hub token; None: the one that huggingface_hub finds itself; False: none.
      weight_files: see `ModelFiles.weight_files`; of several GGUF files, the one to take.
      tokenizer_id: Hub id or folder whose tokenizer and chat template are used instead of the model's own.
    Raises:
      ModelNotFoundError: there is no such folder, file or repository, or it cannot be reached.
    """
    if tokenizer_id is not None:
        found = find_model(name, revision=revision, token=token, weight_files=weight_files)
        return replace(found, tokenizer_folder=_tokenizer_folder(tokenizer_id, token))
    files = tuple(weight_files)
    if name == DEMO:
        return ModelFiles(name=name, folder=DEMO_FOLDER, weight_files=files)
    path = Path(name).expanduser()
    if is_folder(path):
        if not has_configuration(path) and any(path.glob("*.gguf")):
            return _one_gguf(name, files)
        return ModelFiles(name=name, folder=path, weight_files=files)
    if is_file(path):
        if is_gguf(path):
            if files:
                raise ModelNotFoundError(
                    f"{name} is a GGUF file and holds its own weights; leave out {', '.join(files)}"
                )
            return ModelFiles(name=name, folder=path.parent, gguf=path)
        if path.suffix != ".safetensors":
            raise ModelNotFoundError(
                f"{name} is a {path.suffix or 'nameless'} file; expected a folder, a GGUF file or a .safetensors file"
            )
        return ModelFiles(name=name, folder=path.parent, weight_files=files or (str(path),))
    if not HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"{name!r} is neither a folder or file here nor a Hub id (owner/name)")
    folder = _snapshot(name, _METADATA, revision=revision, token=token)
    if not has_configuration(folder):
        names = _hub_names(name, revision=revision, token=token)
        if any(file.endswith(".gguf") for file in names):
            return _one_gguf(name, files, revision=revision, token=token)
    return ModelFiles(name=name, folder=folder, repo_id=name, revision=revision, token=token, weight_files=files)


def _one_gguf(
    name: str, files: tuple[str, ...], *, revision: str | None = None, token: str | bool | None = None
) -> ModelFiles:
    """The GGUF file of a folder or repository with such files only."""
    if len(files) > 1:
        raise ModelNotFoundError(
            f"{name} holds GGUF files, of which one is a whole model; name one instead of {', '.join(files)}"
        )
    return find_gguf(name, files[0] if files else None, revision=revision, token=token, option="--weight-file")


def find_gguf(
    model_id: str | None,
    filename: str | None,
    *,
    preferred: str | None = None,
    tokenizer_id: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    option: str = "--quantized-filename",
) -> ModelFiles:
    """Find a GGUF file and download it with all its parts: its configuration and tokenizer are in it.

    Args:
      model_id: Hub id or folder that holds the file; not needed if `filename` is a path.
      filename: the file's name there, or a path; None: the only one that is there.
      preferred: the name to take where `filename` is None and there are several.
      tokenizer_id: Hub id or folder whose tokenizer and chat template are used instead of the file's.
      revision: of `model_id` on the Hub.
      option: the command line's name of `filename`, for messages.
    Raises:
      ModelNotFoundError: there is no such file, folder or repository, or it cannot be reached.
    """
    if tokenizer_id is not None:
        found = find_gguf(model_id, filename, preferred=preferred, revision=revision, token=token, option=option)
        return replace(found, tokenizer_folder=_tokenizer_folder(tokenizer_id, token))
    path = None if filename is None else Path(filename).expanduser()
    if path is not None and is_file(path):
        return ModelFiles(name=str(filename), folder=path.parent, gguf=path)
    if model_id is None:
        raise ModelNotFoundError(f"there is no file {filename}; give its path, or the Hub id that it is from")
    folder = Path(model_id).expanduser()
    if is_file(folder):
        return ModelFiles(name=model_id, folder=folder.parent, gguf=folder)
    if is_folder(folder):
        names = [p.name for p in folder.iterdir()]
        if filename is not None and is_file(folder / filename):
            names = [filename]  # perhaps in a folder below
        chosen = _choose_gguf(names, filename, preferred, where=model_id, option=option)
        return ModelFiles(name=model_id, folder=folder, gguf=folder / chosen)
    if not HUB_ID.fullmatch(model_id):
        raise ModelNotFoundError(f"{model_id!r} is neither a folder or file here nor a Hub id (owner/name)")
    names = _hub_names(model_id, revision=revision, token=token)
    chosen = _choose_gguf(names, filename, preferred, where=model_id, option=option)
    folder = _snapshot(model_id, [parts_pattern(chosen)], revision=revision, token=token)
    return ModelFiles(
        name=model_id,
        folder=folder,
        repo_id=model_id,
        revision=revision,
        token=token,
        gguf=folder / chosen,
    )


def find_adapter(name: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a LoRA adapter, or of an X-LoRA model with its adapters; downloaded from the Hub if it is not
    local.

    Args:
      name: "demo-xlora" (the bundled mixture; write "./demo-xlora" for a folder of that name), "demo-tools" (the
        bundled adapter that calls tools), a folder, or a Hub id.
      revision: branch, tag or commit, for Hub ids.
      token: see `find_model`.
    Raises:
      ModelNotFoundError: there is no such folder or repository, or it cannot be reached.
    """
    if name in BUNDLED_ADAPTERS:
        return BUNDLED_ADAPTERS[name]
    path = Path(name).expanduser()
    if is_folder(path):
        return path
    if is_file(path):
        raise ModelNotFoundError(f"{name} is a file; expected the folder that holds an adapter's configuration, too")
    if not HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"{name!r} is neither a folder here nor a Hub id (owner/name)")
    return _snapshot(name, _ADAPTERS, revision=revision, token=token)


def _choose_gguf(names: list[str], filename: str | None, preferred: str | None, *, where: str, option: str) -> str:
    """The name of the file, or of its first part."""
    for wanted in (filename, preferred if filename is None else None):
        if wanted is not None and wanted in names:
            return wanted
    whole = [name for name in sorted(names) if name.endswith(".gguf") and is_first_part(name)]
    # Vision towers beside models have such names by convention.
    whole = [name for name in whole if not name.rpartition("/")[2].startswith("mmproj")] or whole
    if filename is None and len(whole) == 1:
        return whole[0]
    shown = ", ".join(whole[:20]) + (f" and {len(whole) - 20} more" if len(whole) > 20 else "")
    if not whole:
        raise ModelNotFoundError(f"{where} has no GGUF file" + (f" {filename}" if filename else ""))
    if filename is not None:
        raise ModelNotFoundError(f"{where} has no file {filename}; its GGUF files are {shown}")
    raise ModelNotFoundError(f"{where} has several GGUF files; name one with {option}: {shown}")


def _tokenizer_folder(name: str, token: str | bool | None) -> Path:
    path = Path(name).expanduser()
    if is_folder(path):
        return path
    if not HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"the tokenizer {name!r} is neither a folder here nor a Hub id (owner/name)")
    return _snapshot(name, _METADATA, revision=None, token=token)


def _hub_names(repo_id: str, *, revision: str | None, token: str | bool | None) -> list[str]:
    """Names of a repository's files; of those in the local cache where the Hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(repo_id, revision=revision, token=token, timeout=30).siblings
        return [sibling.rfilename for sibling in siblings or ()]
    except Exception:  # of the Hub, or of the HTTP library below it
        # A download of no files gives a clear error, or finds what an earlier run has downloaded.
        folder = _snapshot(repo_id, ["no such file"], revision=revision, token=token)
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if is_file(path)]


def _snapshot(repo_id: str, patterns: list[str], *, revision: str | None, token: str | bool | None) -> Path:
    """The local folder of a repository at a revision, with the files that match downloaded. Honours HF_HOME,
    HF_ENDPOINT and HF_HUB_OFFLINE, and falls back to what is cached where the Hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo_id} is gated: accept its terms on the Hub and give a token (`hf auth login`, or --token-source)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no model {repo_id} on the Hub, or it is private and the token does not open it; "
            "check the spelling, or give a folder that exists"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} is not in the local cache and the Hub cannot be reached") from error
    except HfHubHTTPError as error:
        raise ModelNotFoundError(f"the Hub refused {repo_id}: {error}") from error
    except OSError as error:
        raise ModelNotFoundError(f"{repo_id} could not be downloaded: {error}") from error
