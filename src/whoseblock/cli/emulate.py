"""``whoseblock emulate``: serve an image as a failing device, to rehearse a recovery."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.failure_values import FailureOptions
from whoseblock.cli.options.failures import image_failure_options
from whoseblock.cli.options.reports import parse_ranges
from whoseblock.cli.presentation.notices import report_readings
from whoseblock.errors import PrivilegeError, TargetError, WhoseblockError
from whoseblock.printable import printable
from whoseblock.ranges import ByteRange, merge, parse_range

if TYPE_CHECKING:
    from whoseblock.media.base import WritableMedia
    from whoseblock.media.pmem import EmulatedPmem
    from whoseblock.sources.base import Reading

__all__ = ["emulate"]


@click.command(
    cls=Command,
    epilog="""\b
DIRECTORY is an empty folder; if it does not exist, it is created, and removed
at the end.  Its files:
  device      the image: reading a bad sector fails with EIO, writing the
              whole sector heals it
  control     the bad ranges, one per line; to change them, write lines:
              bad RANGE, permanent RANGE, good RANGE, clear
  badblocks   the bad ranges as SECTOR COUNT, like /sys/block/pmemN/badblocks
  statistics  counts of failed reads and writes, and of healed sectors

Ranges are START[+LENGTH] as for lookup: 307p, 2456s+8s, 1257472+4096.  They are widened to
whole sectors.

IMAGE is not changed: written data is kept in a temporary file (in TMPDIR), and discarded at the
end.  With --in-place it is written to IMAGE.

To stop it, press Ctrl-C, send SIGTERM, or run umount DIRECTORY.

\b
Examples:
  whoseblock emulate disk.img failing --bad 307p
  then, in another terminal:
    losetup --find --show --direct-io=on failing/device
    echo 'permanent 2456s' > failing/control
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
    help="Range that fails until it is written; may be repeated.",
)
@click.option(
    "--permanent",
    multiple=True,
    metavar="RANGE",
    help="Range that fails permanently, whatever is written; may be repeated.",
)
@image_failure_options
@click.option(
    "--sector",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Unit in bytes in which the device fails and heals: the physical sector of a disk.",
)
@click.option("--in-place", is_flag=True, help="Write into IMAGE, which changes it.")
@click.option(
    "--background",
    is_flag=True,
    help="Serve in the background, and return when the device is ready.",
)
def emulate(
    image: str,
    directory: Path,
    permanent: tuple[str, ...],
    sector: str,
    **options: Any,  # noqa: ANN401 - click's
) -> None:
    """Serve IMAGE as a failing device, to rehearse a recovery.

    The device is DIRECTORY/device.  The kernel can mount its filesystem on a loop device over it.
    """
    from whoseblock.media.fuse import serve
    from whoseblock.media.pmem import EmulatedPmem

    in_place = options["in_place"]
    bad = _bad_ranges(FailureOptions.of(options["texts"], options))
    never = [parse_range(text) for text in permanent]
    with _opened_base(image, in_place=in_place) as base:
        medium = EmulatedPmem(base, bad, permanent=never, sector=int(sector))
        if not medium.size:
            raise TargetError(f"{image!r} is smaller than one sector")
        served = _start_detached() if options["background"] else _do_nothing
        with _mount_point(directory) as folder:

            def report_ready() -> None:
                # The parent may have ended; the folder is served nevertheless.
                with suppress(OSError):
                    for line in _ready_lines(medium, folder, in_place=in_place):
                        click.echo(line)
                with suppress(OSError):
                    served()

            serve(medium, folder, report_ready)


def _bad_ranges(given: FailureOptions) -> list[ByteRange]:
    from whoseblock.cli.options.report_files import read_report_files

    given.check(target=True, needed=False)
    readings: list[Reading] = []
    page_size = os.sysconf("SC_PAGE_SIZE")
    failures = [
        *parse_ranges(given, None, readings),
        *read_report_files(given, page_size, readings),
    ]
    report_readings(readings)
    return merge(ByteRange(one.start, one.length) for one in failures)


@contextmanager
def _opened_base(image: str, *, in_place: bool) -> "Iterator[WritableMedia]":
    """Open the image; raises `TargetError` if that fails, or if it must not be written."""
    from whoseblock.media.device import FileMedia
    from whoseblock.media.mounts import mount_note
    from whoseblock.media.overlay import OverlayMedia

    with ExitStack() as stack:
        if in_place:
            # A child in the background inherits the descriptor, and with it the locks.
            claimed = _claim_image(image)
            stack.callback(os.close, claimed)
            yield stack.enter_context(closing(FileMedia(claimed, writable=True, name=image)))
            return
        note = mount_note(image)
        base = FileMedia(image)
        if note:
            click.echo(f"whoseblock: {printable(image)}: {printable(note)}", err=True)
        yield stack.enter_context(closing(OverlayMedia(base)))


def _claim_image(image: str) -> int:
    """Claim the image for writing in place; return the descriptor that holds the locks."""
    from whoseblock.media.claims import claim
    from whoseblock.media.mounts import mount_note

    hint = "omit --in-place: written data are then kept in a temporary file"
    if mount_note(image):
        raise TargetError(f"{image!r} is mounted and must not be written", hint=hint)
    if not Path(image).is_file():
        raise TargetError(
            f"{image!r} is not an image file; only these are written in place", hint=hint
        )
    try:
        return claim(image)
    except PrivilegeError:
        raise
    except TargetError as error:
        raise TargetError(f"{error}: it must not be written", hint=hint) from error


@contextmanager
def _mount_point(directory: Path) -> Iterator[Path]:
    """Yield the empty folder; a missing one is created, and removed afterwards."""
    # libfuse changes the current folder to the root.
    directory = directory.absolute()
    made = False
    try:
        try:
            directory.mkdir()
            made = True
        except FileExistsError:
            if any(directory.iterdir()):
                raise TargetError(
                    f"{str(directory)!r} is not empty", hint="name an empty folder, or a new one"
                ) from None
            # Its owner can remove it, in another mount namespace, and with it the mount.
            owner = directory.stat().st_uid
            if owner not in (0, os.geteuid()):
                raise TargetError(
                    f"{str(directory)!r} belongs to user {owner}, who could replace the device",
                    hint="name a new folder",
                ) from None
    except OSError as error:
        gone = error.errno == errno.ENOTCONN
        hint = "its server has ended; umount it first" if gone else ""
        words = f"cannot mount on {str(directory)!r}: {error.strerror}"
        raise TargetError(words, hint=hint) from error
    try:
        yield directory
    finally:
        if made:
            with suppress(OSError):
                directory.rmdir()


def _ready_lines(medium: "EmulatedPmem", folder: Path, *, in_place: bool) -> Iterator[str]:
    failing = sum(run.length for run in merge(chain.from_iterable(medium.lists())))
    sectors = f"{failing // medium.sector} of {medium.size // medium.sector} sectors bad"
    kept = "which is written in place" if in_place else "which is not changed"
    yield f"{printable(str(folder / 'device'))} serves {printable(medium.name)}, {kept}: {sectors}"
    device, place = (printable(shlex.quote(str(path))) for path in (folder / "device", folder))
    if os.geteuid() == 0:
        yield f"  a loop device on it: losetup --find --show --direct-io=on {device}"
        yield f"  to stop: umount {place}"
    else:
        yield "  a loop device on it needs root; run this command as root too"
        yield f"  to stop: fusermount3 -u {place}"


def _do_nothing() -> None:
    """Return without effect: in the foreground, no process waits for readiness."""


def _start_detached() -> Callable[[], None]:
    """Fork, and continue in the child; the result, called there, lets the parent exit."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        code = 0 if os.read(reader, 1) else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # The child has reported its error on the same standard error, unless a signal ended it.
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
