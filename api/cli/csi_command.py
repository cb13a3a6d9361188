"""The command ``cistern csi``: serves the Container Storage Interface on this host."""

import socket
from typing import Annotated

import typer

from api.cli.client import open_api
from api.cli.session import Url, new_group
from domain.errors import ConfigurationError
from domain.logs import configure_logging
from domain.settings import load_log_settings

csi = new_group()


@csi.command("csi")
def run_csi(
    *,
    endpoint: Annotated[str, typer.Option(help="Socket to listen on.", metavar="unix:///PATH")],
    node: Annotated[
        str | None, typer.Option(envvar="CISTERN_NODE", help="Name of this node.", show_default="the host name")
    ] = None,
    url: Url = "http://127.0.0.1:8000",
) -> None:
    """Serve volumes to Kubernetes on this host until a signal ends it; nodes need `cistern node` on the same host."""
    try:
        from api.csi.api import REQUEST_SECONDS
        from api.csi.server import run
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is missing; `pip install 'cistern[csi]'` installs it") from None
    configure_logging(load_log_settings())
    run(open_api(url, timeout=REQUEST_SECONDS), endpoint, node or socket.gethostname())
