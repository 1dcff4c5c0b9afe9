"""Keeps compiled programs on disk for later starts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax


def enable_compilation_cache(folder: Path | str) -> Path:
    """Keep every compiled program in `folder`, created with access for the user only: its contents are executed.

    Call it before the first compilation.

    Returns: the folder.
    Raises:
      OSError: the folder cannot be created or written to; the message is one line that names it.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot keep compiled programs in {folder}: {error.strerror or error}") from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The defaults skip small programs and those that compile in under a second: for a small model, all of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
