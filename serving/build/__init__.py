"""Builds the service from the settings: files, adapters, engine. Only this package imports both API and model."""
