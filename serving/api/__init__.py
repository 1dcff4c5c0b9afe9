"""The HTTP interface. `controllers/` has the endpoints, each a record and a handler; `requests/` turns bodies into
engine requests, `responses/` turns events into bodies, `description/` documents the endpoints, `service/` holds the
served model, `log/` has the request log. Imports point one way, from `endpoints` down to `schemas`. No JAX."""
