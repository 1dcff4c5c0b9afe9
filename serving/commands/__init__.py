"""The command line: `mistral-jax` and its subcommands. Each imports what it needs when it runs, so that `--help` is
fast."""
