"""From the events of the engine to JSON: whole, or as a stream of server-sent events."""
