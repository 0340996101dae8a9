"""``latent-pacs peer``: lists the peers of config.yaml, adds one, and tests the connection to one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from node.cli.exit_codes import FAILED, UsageError
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, say
from node.config import RenditionPolicy, add_peer, as_data, load

peers = typer.Typer(help="List, add and test the peers of config.yaml.", no_args_is_help=True)

TitleArgument = Annotated[str, typer.Argument(help="The AE title of the peer.", metavar="AE_TITLE")]


@peers.command("list")
def list_peers(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the peers of config.yaml, with what each may do and which rendition it gets."""
    found = as_data(load(config))["peers"]
    table = Table("AE title", "address", "may", "rendition", "texture", "TLS")
    for one in found:
        address = f"{one['host']}:{one['port']}" if one["host"] else ""
        tls = "yes" if one["tls"] else ""
        table.add_row(one["ae_title"], address, " ".join(one["allow"]), one["rendition"], one["texture"] or "", tls)
    say(found, table, as_json=as_json)


@peers.command("add")
def add(
    ae_title: TitleArgument,
    host: Annotated[str, typer.Option("--host", help="Its host name or address, to send images to it.")] = "",
    port: Annotated[int, typer.Option("--port", help="Its DICOM port.", min=0, max=65535)] = 0,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="echo, store, find, move, get or commit (default: echo); repeatable."),
    ] = None,
    rendition: Annotated[
        RenditionPolicy | None, typer.Option("--rendition", help="Which form of a reconstructable image it gets.")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Connections in both directions use TLS.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add a peer to config.yaml, and keep everything else in the file, comments included. Restart the node afterwards.

    The file is checked before it is replaced. Other keys of a peer, such as from and tls_name, are added by hand.
    """
    entry: dict[str, Any] = {"ae_title": ae_title}
    if host or port:
        entry |= {"host": host, "port": port}
    entry["allow"] = allow or ["echo"]
    if rendition is not None:
        entry["rendition"] = rendition.value
    if tls:
        entry["tls"] = True
    opened = load(config, {}).lists_no_peers
    added = add_peer(config, entry)
    lines = [f"{added.ae_title} is added to {config}; restart the node to use it"]
    if opened:
        lines.append("until now any AE title could store; from now on, AE titles that are not listed may only echo")
    say(added.model_dump(mode="json", by_alias=True), *lines, as_json=as_json)


@peers.command("echo")
def echo(ae_title: TitleArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Send a C-ECHO to a peer, over TLS if its entry says so. No running node is needed.

    Exit code 1: the peer cannot be reached, rejected the association, or answered with a status other than 0000.
    """
    from node.dimse.echo import echo as send_echo

    settings = load(config)
    peer = settings.peer(ae_title)
    if peer is None or not peer.reachable:
        raise UsageError(f"{ae_title} is not a peer with host and port; `latent-pacs peer list` lists the peers")
    answer, seconds = send_echo(settings, peer)
    status = "" if answer is None else f"{answer:04X}"
    report = {"ae_title": peer.ae_title, "status": status, "seconds": round(seconds, 3)}
    outcome = f"status {status}" if status else "no answer"
    text = f"{peer.ae_title} at {peer.host}:{peer.port}: {outcome}, {seconds:.2f} s"
    say(report, text, as_json=as_json)
    if answer != 0:
        raise typer.Exit(FAILED)
