"""The endpoints: for each its record and its handler. `serving.api.endpoints` lists them."""
