"""From what a user names (a folder, a file, a Hub id) to files on this machine.

Two steps, so that a server can check everything small before it downloads gigabytes: `find_model` fetches configuration and
tokenizer, `ModelFiles.fetch_weights` the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion.weight_files import find_weight_files

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "models" / "demo"

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
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


class ModelNotFoundError(OSError):
    """A model, or a file of it, cannot be found or fetched."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a model's files are."""

    name: str
    """As the user gave it."""
    folder: Path
    """Holds configuration and tokenizer."""
    repo_id: str | None = None
    """Set for models from the Hub, whose weights may not be here yet."""
    revision: str | None = None
    token: str | bool | None = None
    weight_files: tuple[str, ...] = ()
    """Files to read instead of the model's own: paths, or names in the model's folder or repository."""

    def fetch_weights(self) -> list[Path]:
        """Paths of the weight files, downloaded first where they are missing.

        Raises:
          ModelNotFoundError, WeightFileError: a file is not there, or cannot be fetched.
        """
        if self.weight_files:
            return [self._weight_file(name) for name in self.weight_files]
        if self.repo_id is not None:
            own_format = not (self.folder / "config.json").is_file() and (self.folder / "params.json").is_file()
            folder = self._download(["consolidated*.safetensors" if own_format else "model*.safetensors"])
            return find_weight_files(folder)
        return find_weight_files(self.folder)

    def _weight_file(self, name: str) -> Path:
        for path in (Path(name).expanduser(), self.folder / name):
            if path.is_file():
                return path
        if self.repo_id is None:
            raise ModelNotFoundError(f"weight file {name!r} is neither a file here nor in {self.folder}")
        if (path := self._download([name]) / name).is_file():
            return path
        raise ModelNotFoundError(f"weight file {name!r} is neither a file here nor in the repository {self.repo_id}")

    def _download(self, patterns: list[str]) -> Path:
        assert self.repo_id is not None
        # The commit that the configuration was taken from, which is the folder's name: a branch may have moved on.
        return _snapshot(self.repo_id, patterns, revision=self.folder.name, token=self.token)


def find_model(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    weight_files: Sequence[str] = (),
) -> ModelFiles:
    """Find a model and fetch what is small of it.

    Args:
      name: "demo" (the bundled model; write "./demo" for a folder of that name), a folder, a single safetensors file beside its
        configuration, or a Hub id.
      revision: branch, tag or commit, for Hub ids.
      token: a Hub token; None: the one that huggingface_hub finds itself; False: none.
      weight_files: see `ModelFiles.weight_files`.
    Raises:
      ModelNotFoundError: there is no such folder, file or repository, or it cannot be reached.
    """
    files = tuple(weight_files)
    if name == DEMO:
        return ModelFiles(name=name, folder=DEMO_FOLDER, weight_files=files)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFiles(name=name, folder=path, weight_files=files)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelNotFoundError(
                f"{name} is a {path.suffix or 'nameless'} file; expected a folder or a .safetensors file"
            )
        return ModelFiles(name=name, folder=path.parent, weight_files=files or (str(path),))
    if not _REPO_ID.fullmatch(name):
        raise ModelNotFoundError(f"{name!r} is neither a folder or file here nor a Hub id (owner/name)")
    folder = _snapshot(name, _METADATA, revision=revision, token=token)
    return ModelFiles(name=name, folder=folder, repo_id=name, revision=revision, token=token, weight_files=files)


def _snapshot(repo_id: str, patterns: list[str], *, revision: str | None, token: str | bool | None) -> Path:
    """The local folder of a repository at a revision, with the files that match downloaded. Honours HF_HOME, HF_ENDPOINT and
    HF_HUB_OFFLINE, and falls back to what is cached where the Hub cannot be reached."""
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
