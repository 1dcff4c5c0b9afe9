"""API documentation, generated from the endpoints' records: the OpenAPI document, a page that shows it, and the
compatibility page. Pure functions; nothing is served here."""
