"""The HTTP interface: schemas, errors, access, and what the life of a request needs. `requests/` turns bodies into
engine requests, `responses/` turns events into bodies, `controllers/` has the endpoints, `log/` writes down what
happened. No JAX."""
