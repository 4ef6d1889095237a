"""The command line of the store: `seqvault serve | load | get | health`."""

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from laser_client.errors import SeqVaultError
from seqcore.errors import SchemaError
from seqvault_server.commands.get import show_history
from seqvault_server.commands.health import is_healthy
from seqvault_server.commands.load import LoadError, load_file
from seqvault_server.server import DEFAULT_PORT, ServerConfig, opener
from seqvault_server.storage.errors import DataDirectoryError
from servicekit.config import ConfigError, load
from servicekit.listen import BindError
from servicekit.logs import configure
from servicekit.runner import run

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"

_address = click.option(
    "--address", default=DEFAULT_ADDRESS, show_default=True, help="Address of the server, host:port."
)
_timeout = click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for a reply.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="laser-stack")
def main() -> None:
    """SeqVault keeps every user's lifecycle history and gives it back in one read."""


@main.command()
@click.option("--config", "config_file", type=click.Path(exists=True, path_type=Path), help="Settings (YAML).")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory; made if it does not exist.")
@click.option("--schema", type=click.Path(path_type=Path), help="Schema file (YAML).")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="gRPC port, 0 for a free one.  [default: 7070]")
@click.option("--metrics-port", type=int, help="HTTP port of /metrics and /healthz.  [default: 7071]")
@click.option("--allow-insecure-off-loopback", is_flag=True, default=None, help="Listen off loopback without TLS.")
def serve(**options: object) -> None:
    """Run the store until SIGTERM or Ctrl-C, then drain.

    Every setting can also be given as SEQVAULT_SECTION_NAME in the environment or in the --config file; options win.
    """
    configure()
    config_file = options.pop("config_file")
    given = {name: value for name, value in options.items() if value is not None}
    overrides = {name if name in ("data", "schema") else f"listen.{name}": value for name, value in given.items()}
    try:
        config = load(
            ServerConfig,
            file=config_file if isinstance(config_file, Path) else None,
            environ=os.environ,
            prefix="SEQVAULT",
            overrides=overrides,
        )
        run(opener(config), config=config.listen)
    except (ConfigError, SchemaError, DataDirectoryError, BindError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command("load")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_address
@click.option("--in-flight", default=8, show_default=True, type=click.IntRange(1, 32), help="Calls under way at once.")
@click.option("--restart", is_flag=True, help="Forget an earlier, interrupted load of this file and begin anew.")
def load_(file: Path, address: str, in_flight: int, *, restart: bool) -> None:
    """Load a Parquet FILE of events (a column user_id and the schema's event columns, in the order of time) or of items
    (a column item_id and the schema's side-info columns).

    Interrupted, it goes on where it stopped when called again; no event is stored twice.
    """
    try:
        load_file(file, address=address, in_flight=in_flight, restart=restart, console=Console(stderr=True))
    except (LoadError, SeqVaultError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("user", type=click.IntRange(0, 2**64 - 1))
@_address
@_timeout
@click.option("--last", default=20, show_default=True, type=click.IntRange(0), help="Newest events to show, 0 for all.")
@click.option("--view", default="", help="A view of the schema.")
@click.option("--columns", default="", help="Event columns, comma-separated.")
@click.option("--side-info", default="", help="Side-info columns to join, comma-separated.")
@click.option("--as-of", "as_of_ms", type=int, help="Only events before this time, ms since the epoch.")
def get(
    *, user: int, address: str, timeout: float, last: int, view: str, columns: str, side_info: str, as_of_ms: int | None
) -> None:
    """Show a USER's newest events as a table."""
    try:
        show_history(
            user,
            address=address,
            timeout=timeout,
            last=last,
            view=view,
            columns=[name for name in columns.split(",") if name],
            side_info=[name for name in side_info.split(",") if name],
            as_of_ms=as_of_ms,
            console=Console(),
        )
    except SeqVaultError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@_address
@_timeout
def health(address: str, timeout: float) -> None:
    """Ask whether the server serves; exit status 0 if it does."""
    if not is_healthy(address, timeout=timeout):
        click.echo(f"{address}: not serving", err=True)
        sys.exit(1)
    click.echo(f"{address}: serving")


if __name__ == "__main__":
    main()
