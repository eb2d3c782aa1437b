"""``whoseblock emulate``: an image as a device that fails, to rehearse a recovery on."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.failures import Given, image_failure_options
from whoseblock.cli.notices import report_readings
from whoseblock.cli.terminal import printable
from whoseblock.errors import TargetError, WhoseblockError
from whoseblock.ranges import ByteRange, merge, parse_range

if TYPE_CHECKING:
    from whoseblock.media.base import WritableMedia
    from whoseblock.media.pmem import EmulatedPmem
    from whoseblock.sources.base import Reading

__all__ = ["emulate"]


@click.command(
    cls=Command,
    epilog="""\b
DIRECTORY is an empty folder; one that is not there is made, and removed at the end. In it:
  device      the image: reading a bad sector gives EIO, writing it whole heals it
  control     the bad ranges, a line each; takes lines, too: bad RANGE, stubborn RANGE,
              good RANGE, clear
  badblocks   the same as SECTOR COUNT, like /sys/block/pmemN/badblocks
  statistics  how many reads and writes failed, how many sectors were healed

\b
Ranges are START[+LENGTH] as for lookup: 307p, 2456s+8s, 1257472+4096. They are widened to
whole sectors.

\b
What is written is kept in a file in the folder for temporary files (TMPDIR), as large as what
is written, and is forgotten at the end; IMAGE stays as it is, unless --in-place.

\b
Ctrl-C, SIGTERM or umount DIRECTORY ends it.

\b
Examples:
  whoseblock emulate disk.img failing --bad 307p     then, in another terminal:
    losetup --find --show --direct-io=on failing/device
    echo 'stubborn 2456s' > failing/control
  whoseblock emulate rescued.img failing --mapfile rescued.map --background
  whoseblock emulate disk.img failing --bad 10M+1M --sector 4096""",
)
@click.argument("image", type=click.Path(readable=False))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--bad",
    "texts",
    multiple=True,
    metavar="RANGE",
    help="A range that fails until it is written; may be repeated.",
)
@click.option(
    "--stubborn",
    multiple=True,
    metavar="RANGE",
    help="A range that fails whatever is written; may be repeated.",
)
@image_failure_options
@click.option(
    "--sector",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Bytes that fail and heal together; a disk with physical sectors of 4096 fails by those.",
)
@click.option(
    "--in-place", is_flag=True, help="Write into IMAGE, which is then no longer as it was."
)
@click.option("--background", is_flag=True, help="Return once it serves, and go on serving.")
def emulate(
    image: str,
    directory: Path,
    stubborn: tuple[str, ...],
    sector: str,
    **options: Any,  # noqa: ANN401 - click's
) -> None:
    """Serve IMAGE as the failing device DIRECTORY/device, to rehearse a recovery.

    With a loop device on it, a real kernel mounts a filesystem on failing media.
    """
    from whoseblock.media.fuse import serve
    from whoseblock.media.pmem import EmulatedPmem

    in_place = options["in_place"]
    bad = _ranges(Given.of(options["texts"], options))
    never = [parse_range(text) for text in stubborn]
    with closing(_opened(image, in_place=in_place)) as base:
        medium = EmulatedPmem(base, bad, stubborn=never, sector=int(sector))
        if not medium.size:
            raise TargetError(f"{image!r} does not hold one whole sector")
        served = _detached() if options["background"] else _nothing
        with _mount_point(directory) as folder:

            def tell() -> None:
                # Whoever started it may have gone; it serves all the same.
                with suppress(OSError):
                    for line in _told(medium, folder, in_place=in_place):
                        click.echo(line)
                with suppress(OSError):
                    served()

            serve(medium, folder, tell)


def _ranges(given: Given) -> list[ByteRange]:
    given.check(target=True, needed=False)
    readings: list[Reading] = []
    page_size = os.sysconf("SC_PAGE_SIZE")
    failures = [*given.ranges_asked(None, readings), *given.failures(page_size, readings)]
    report_readings(readings)
    return merge(ByteRange(one.start, one.length) for one in failures)


def _opened(image: str, *, in_place: bool) -> "WritableMedia":
    """Open what is served; raises `TargetError` if it cannot be, or must not be written."""
    from whoseblock.media.device import FileMedia
    from whoseblock.media.mounts import mount_note
    from whoseblock.media.overlay import OverlayMedia

    note = mount_note(image)
    if not in_place:
        base = FileMedia(image)
        if note:
            click.echo(f"whoseblock: {printable(image)}: {printable(note)}", err=True)
        return OverlayMedia(base)
    hint = "leave --in-place out: what is written is then kept apart"
    if note:
        raise TargetError(f"{image!r} is mounted, and must not be written", hint=hint)
    if not Path(image).is_file():
        raise TargetError(f"{image!r} is no image file, which alone is written in place", hint=hint)
    return FileMedia(image, writable=True)


@contextmanager
def _mount_point(directory: Path) -> Iterator[Path]:
    """Give the empty folder, made if it was not there; such a one is removed afterwards."""
    # libfuse changes to the root folder.
    directory = directory.absolute()
    made = False
    try:
        try:
            directory.mkdir()
            made = True
        except FileExistsError:
            if any(directory.iterdir()):
                raise TargetError(
                    f"{str(directory)!r} is not empty", hint="name a folder that is, or a new one"
                ) from None
    except OSError as error:
        gone = error.errno == errno.ENOTCONN
        hint = "whoever served it has gone: umount it first" if gone else ""
        words = f"{str(directory)!r} cannot be mounted on: {error.strerror}"
        raise TargetError(words, hint=hint) from error
    try:
        yield directory
    finally:
        if made:
            with suppress(OSError):
                directory.rmdir()


def _told(medium: "EmulatedPmem", folder: Path, *, in_place: bool) -> Iterator[str]:
    failing = sum(run.length for run in merge(chain.from_iterable(medium.lists())))
    sectors = f"{failing // medium.sector} of {medium.size // medium.sector} sectors bad"
    kept = "written in place" if in_place else "kept as it is"
    yield f"{printable(str(folder / 'device'))} serves {printable(medium.name)}, {kept}: {sectors}"
    device, place = (printable(shlex.quote(str(path))) for path in (folder / "device", folder))
    if os.geteuid() == 0:
        yield f"  a loop device on it: losetup --find --show --direct-io=on {device}"
        yield f"  to stop: umount {place}"
    else:
        yield "  a loop device on it needs root, as whom to run this, too"
        yield f"  to stop: fusermount3 -u {place}"


def _nothing() -> None:
    """Do what there is to do in the foreground once it serves."""


def _detached() -> Callable[[], None]:
    """Go on in a process of its own; what this gives, called there, ends the one that waits."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        code = 0 if os.read(reader, 1) else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # The child has said on our standard error what went wrong, unless a signal ended it.
        click.get_current_context().exit(code if code >= 0 else WhoseblockError.exit_code)
    os.close(reader)
    os.setsid()

    def served() -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        os.write(writer, b"\n")
        os.close(writer)

    return served
