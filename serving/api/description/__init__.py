"""What is told of the endpoints, made from their records: the OpenAPI document, a page that shows it, and the page on
compatibility. Pure functions; nothing is served here."""
