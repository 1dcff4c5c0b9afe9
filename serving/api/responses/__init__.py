"""From engine events to JSON responses: whole, or as a stream of server-sent events."""
