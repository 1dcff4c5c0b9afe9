"""Keeping compiled programs on disk, so that a second start finds them."""

from __future__ import annotations

from pathlib import Path

import jax


def enable_compilation_cache(folder: Path | str) -> Path:
    """Keep every compiled program in `folder`, which is made, private to the user: what is in it is executed.

    Call it before the first compilation. Returns the folder.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The defaults skip programs that compile in under a second, or are small: all of a small model's.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
