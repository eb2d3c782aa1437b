"""``whoseblock map``: the owners of a whole device, as a file of Parquet or Arrow."""

import os
from pathlib import Path
from typing import Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.extras import check_extra
from whoseblock.tables.files import SUFFIXES, dataset_file, write_table

__all__ = ["map"]


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock map disk.img --output owners.parquet
  whoseblock map /dev/sda --output sda.arrow --no-paths
  whoseblock map /srv --output /net/maps/""",
)
@click.argument("target", type=click.Path(readable=False))
@target_options
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write, .parquet or .arrow; or a folder with a dataset of many hosts, in which the"
    " file is host=…/filesystem=…/owners.parquet.",
)
@click.option("--no-paths", is_flag=True, help="Write files by inode only, which is faster.")
@click.option(
    "--host",
    default=None,
    metavar="NAME",
    help="Name of the host.  [default: that of this machine]",
)
def map(  # noqa: A001 - the name of the command
    target: str,
    output: Path,
    no_paths: bool,
    host: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Write the owner of every block of TARGET to a table.

    Each row is a range with its owner, as in lookup; shared bytes have a row for each file.  The
    table is written as it is read, and not updated later: before a repair, use lookup.
    """
    from whoseblock.lookup import Lookup
    from whoseblock.target import Target

    check_extra("parquet")
    is_folder = output.is_dir()
    if not is_folder and output.suffix not in SUFFIXES:
        raise click.UsageError(f"the FILE of --output must end in {' or '.join(SUFFIXES)}")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from whoseblock.tables.owner_map import find_origin, map_batches

    where = options_of(options)
    with Target(target, where) as opened, Lookup(opened.open_leaf) as finder:
        layer = opened.layer
        if layer is None:  # pragma: no cover - a named target has a layer
            raise click.UsageError("missing TARGET")
        with ProgressBar() as progress:
            finder.progress = progress
            origin = find_origin(finder, layer, opened.host, host or os.uname().nodename)
            if is_folder:
                output = dataset_file(output, origin.host, origin.filesystem or layer.name)
                output.parent.mkdir(parents=True, exist_ok=True)
            batches = map_batches(finder, layer, origin, paths=not no_paths, progress=progress)
            rows = write_table(output, batches)
        click.echo(f"{rows} rows in {os.fsdecode(output)}", err=True)
