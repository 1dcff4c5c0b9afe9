"""The web application, served by `mistral-jax`, or by `litestar --app serving.app:create_app run` at the address and
port of Litestar's own options.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide

from serving.api.access import Access, AccessRules, allowed_names
from serving.api.endpoints import ENDPOINTS, routes
from serving.api.log.log_file import LogFile
from serving.api.log.request_id import add_request_id
from serving.api.log.request_log import RequestLog
from serving.api.requests.bodies.unknown_fields import HEADER as IGNORED_FIELDS
from serving.api.requests.bodies.unknown_fields import add_ignored_fields
from serving.api.responses.errors import exception_handlers
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.logs import configure_logging
from serving.settings.paths import check_paths
from serving.settings.settings import Settings

_CORS_HEADERS = ["Authorization", "Content-Type", "X-Api-Key", "X-Request-Id", "Anthropic-Version"]


def create_app(settings: Settings | None = None, *, service: Service | None = None) -> Litestar:
    """The application, idle until its lifespan starts; then the model is built and loaded in the background.

    Args:
      settings: None: read them from the environment.
      service: used instead of building the one that the settings describe.

    Raises:
      SettingsError: an environment variable has an invalid value, or names a path that does not exist.
    """
    if settings is None:
        settings = Settings.from_env()
        check_paths(settings)
    host = ServiceHost(settings, build_service if service is None else lambda _settings: service)

    async def provide_host() -> ServiceHost:
        return host

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        request_log = app.state.request_log
        if not logging.getLogger().handlers:  # under `litestar run`; our own command has already done it
            configure_logging(settings.log_level)
        if settings.log is not None:
            request_log.file = host.log_file = LogFile(settings.log)
        host.start()
        try:
            yield
        finally:
            await host.stop()
            if host.log_file is not None:
                host.log_file.close()
                request_log.file = host.log_file = None

    cors = _cors(settings)
    error_shapes = {path: endpoint.error_shape for endpoint in ENDPOINTS for path in endpoint.paths}
    app = Litestar(
        route_handlers=routes(ENDPOINTS),
        dependencies={"host": Provide(provide_host)},
        exception_handlers=exception_handlers(error_shapes),
        before_send=[add_request_id, add_ignored_fields],
        lifespan=[lifespan],
        cors_config=cors,
        request_max_body_size=settings.max_body_bytes,
        openapi_config=None,
        logging_config=None,
        debug=False,
        state=State({"host": host}),
    )
    # Not Litestar middleware, which sees only routed requests: the access check wraps the router, so that a refused
    # caller learns nothing about the routes, and the log wraps both and records everything.
    names = allowed_names(settings.host, settings.allowed_hosts)
    public = frozenset(path for endpoint in ENDPOINTS if endpoint.public for path in endpoint.paths)
    rules = AccessRules(names=names, cors=cors, keys=settings.api_keys, public_paths=public, error_shapes=error_shapes)
    access = Access(app.asgi_handler, rules)
    quiet = frozenset(path for endpoint in ENDPOINTS if endpoint.quiet for path in endpoint.paths)
    app.state.request_log = app.asgi_handler = RequestLog(access, quiet_paths=quiet)
    return app


def build_service(settings: Settings) -> Service:
    """The service that the settings describe."""
    # JAX takes a second to import, a sixth of it in the garbage collector: its many objects are not garbage.
    gc.disable()
    try:
        from serving.build.build_service import build_service as build
    finally:
        gc.enable()

    return build(settings)


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.allowed_origins:
        return None
    return CORSConfig(
        allow_origins=list(settings.allowed_origins),
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=list(_CORS_HEADERS),
        expose_headers=["X-Request-Id", "Retry-After", IGNORED_FIELDS],
    )
