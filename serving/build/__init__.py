"""From settings to a service: files, adapters, engine. The one room that imports both the API and the model."""
