"""Settings of the network: addresses, who may call, keys, and limits of connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from serving.settings.adapters import AdapterSettings
from serving.settings.spec import Option


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class NetworkSettings(AdapterSettings):
    """Where the server listens, and to whom it answers."""

    port: Annotated[
        int, Option(flags=("--port", "-p"), help="TCP port to listen on; 0 takes a free one.", low=0, high=65535)
    ] = 1234
    host: Annotated[
        str,
        Option(flags=("--host",), help="Address to listen on; 0.0.0.0 for every network interface."),
    ] = "127.0.0.1"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            flags=("--allowed-host",),
            help="Host name that clients may use (the Host header); repeat it for several; * for any.",
            default_text="localhost and --host when listening on loopback, else any",
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(
            flags=("--allowed-origin",),
            help="Web origin whose pages may call the server (CORS), such as https://example.org; repeat it for "
            "several; * for any.",
            default_text="none",
        ),
    ] = ()
    api_keys: Annotated[
        tuple[str, ...],
        Option(
            flags=("--api-key",),
            help="Key that clients must send, as a Bearer token or in X-Api-Key; repeat it for several. "
            "Prefer the variable: other users can read a command line.",
            default_text="none: everyone who can reach the port may use it",
            secret=True,
            pattern=r"[\x21-\x7e]+",
            expects="printable characters without spaces",
        ),
    ] = ()
    max_body_bytes: Annotated[
        int, Option(flags=("--max-body-bytes",), help="Largest request body that is read.", low=1024, high=2**31)
    ] = 10 * 2**20
    max_connections: Annotated[
        int,
        Option(
            flags=("--max-connections",),
            help="Most open connections; beyond this, a new one replaces an idle one.",
            low=8,
            high=10**6,
        ),
    ] = 4096
    max_idle_per_address: Annotated[
        int,
        Option(
            flags=("--max-idle-per-address",),
            help="Most idle connections from one address; a proxy in front of the server is one address.",
            low=1,
            high=10**6,
        ),
    ] = 512
