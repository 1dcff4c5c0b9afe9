"""Before the first request: all programs compiled, called once, and kept on disk for later starts."""
