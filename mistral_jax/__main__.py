"""`mistral-jax`, and `python -m mistral_jax`: the command line of `serving.commands.cli`, which no other part of this
package knows.

It begins here because a stranger's `serving.py` in Python's way is found out before it is imported.
"""

from __future__ import annotations

import sys

from mistral_jax.shadowing import require_own


def main() -> None:
    """Run the command line and exit."""
    try:
        require_own("serving")
    except ImportError as error:
        sys.exit(f"Error: {error}")
    from serving.commands.cli import main as run

    run()


if __name__ == "__main__":
    main()
