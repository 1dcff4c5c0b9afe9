"""Whether the packages that mistral_jax needs are its own.

They have common names. A `conversion.py` beside a user's script, which Python looks at first, would be taken for one of
them, and the error would come from deep inside and name nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


def require_own(name: str) -> None:
    """Whether `import name` gives the package that stands beside this one.

    Raises:
      ImportError: it gives somebody else's file; the message names it and says what to do.
    """
    own = Path(__file__).absolute().parents[1] / name
    if not own.is_dir():  # in an archive there is nothing to compare
        return
    found = _found(name)
    if found is None or _same(found, own):
        return
    raise ImportError(
        f"mistral_jax needs its own package {name!r}, but Python finds {found} first; rename that, "
        "or import mistral_jax where its folder is not at the front of sys.path",
        name=name,
        path=found,
    )


def _found(name: str) -> str | None:
    """The file of a module, or the folder of a package, that Python takes for `name`."""
    module = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if module is not None and spec is None:  # made by hand
        return str(getattr(module, "__file__", "a module without a file"))
    spec = spec or importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return next(iter(spec.submodule_search_locations), None)
    return spec.origin


def _same(a: str, b: Path) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return False
