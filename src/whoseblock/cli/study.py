"""``whoseblock study``: measure the three designs of the fsdax discussion."""

import os
from pathlib import Path

import click

from whoseblock.cli.command import Command
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.encode import encode_json
from whoseblock.extras import import_extra

__all__ = ["study"]


@click.command(
    cls=Command,
    epilog="""\b
The designs:
  per page      a tree on every shared page
  per extent    an address space for every shared extent
  on demand     nothing until a page fails, then a lookup in the reverse map
docs/study.md explains the measurements and their meaning.

\b
Examples:
  whoseblock study disk.img                       tables
  whoseblock study disk.img --json                all numbers
  whoseblock study disk.img --figures pictures    figures, too""",
)
@click.argument("image", type=click.Path(readable=False))
@click.option(
    "--sweep",
    "sweep",
    multiple=True,
    type=click.Path(readable=False),
    metavar="IMAGE",
    help="Image for the sweep of sharing; may be repeated. Default: generated extents.",
)
@click.option("--seed", default=2020, show_default=True, help="Random seed.")
@click.option(
    "--steps",
    default=20_000,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of writes, cuts, clones and failures in the last workload.",
)
@click.option(
    "--jobs",
    default=min(os.cpu_count() or 1, 4),
    show_default="one per processor, at most 4",
    type=click.IntRange(min=1),
    help="Number of workloads that run in parallel.",
)
@click.option("--no-times", is_flag=True, help="Omit timings, which differ from run to run.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw figures into DIR, as SVG and PNG; needs matplotlib.",
)
def study(  # noqa: PLR0913 - one per option
    image: str,
    sweep: tuple[str, ...],
    seed: int,
    steps: int,
    jobs: int,
    no_times: bool,
    as_json: bool,
    figures: Path | None,
) -> None:
    """Compare three designs to find the owners of a failed page.

    IMAGE is an XFS image with a reverse map, and is not changed.  A simulation faults its files in,
    changes them and makes pages fail.  It compares the answers and the costs of the designs.
    """
    if figures is not None:
        import_extra("study")
    from whoseblock.study.study import Plan
    from whoseblock.study.study import study as run_study

    plan = Plan(
        image, sweep_images=sweep, seed=seed, life_steps=steps, jobs=jobs, timed=not no_times
    )
    with ProgressBar() as progress:
        report = run_study(plan, progress)
    if as_json:
        click.echo(encode_json(report))
    else:
        from whoseblock.study.report.table import as_text, tables

        for line in as_text(tables(report)):
            click.echo(line)
    if figures is not None:
        from whoseblock.study.report.figures import draw

        for path in draw(report, figures):
            click.echo(f"whoseblock: drew {path}", err=True)
