"""The HTTP interface. `controllers/` has the endpoints, each a record and a handler; `requests/` turns bodies into
engine requests, `responses/` turns events into bodies, `description/` tells what the endpoints are, `service/` holds
the model that is served, `log/` writes down what happened. Imports point one way, from `endpoints` down to `schemas`.
No JAX."""
