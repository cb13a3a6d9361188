"""The command ``cistern docker-plugin``: serves Docker's volume plugin protocol on this host."""

import socket as sockets
from pathlib import Path
from typing import Annotated

import typer

from api.cli.client import open_api
from api.cli.session import Url, new_group
from api.docker_plugin.options import bytes_of
from api.docker_plugin.process import run
from domain.logs import configure_logging
from domain.settings import load_log_settings

docker_plugin = new_group()


@docker_plugin.command("docker-plugin")
def run_docker_plugin(
    *,
    socket: Annotated[Path, typer.Option(help="Where Docker and Podman call it.")] = Path(
        "/run/docker/plugins/cistern.sock"
    ),
    node: Annotated[
        str | None, typer.Option(envvar="CISTERN_NODE", help="Name of this node.", show_default="the host name")
    ] = None,
    default_size: Annotated[
        str | None, typer.Option(help="Size of volumes that are created without one, such as 10GiB.")
    ] = None,
    url: Url = "http://127.0.0.1:8000",
) -> None:
    """Serve volumes to Docker and Podman on this host until a signal ends it; needs `cistern node` on this host."""
    configure_logging(load_log_settings())
    size = None if default_size is None else bytes_of("--default-size", default_size)
    run(open_api(url), socket, node or sockets.gethostname(), size)
