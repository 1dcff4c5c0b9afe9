"""Every flag and environment variable, and whether the paths they name are there. Nothing else reads either."""
