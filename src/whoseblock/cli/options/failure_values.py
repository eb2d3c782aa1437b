"""The values of the options for failures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TextIO

from whoseblock.cli.options.usage import usage_error

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["STATUSES", "FailureOptions"]

#: The statuses of a map that are read by default.
STATUSES: Final = "?*/-"


class FailureOptions(NamedTuple):
    """The values of the options; the fields have the names of the options."""

    texts: tuple[str, ...]
    ranges_file: TextIO | None = None
    mapfiles: tuple[TextIO, ...] = ()
    statuses: str = STATUSES
    badblocks: tuple[TextIO, ...] = ()
    block_size: int | None = None
    ndctl: tuple[TextIO, ...] = ()
    smart: tuple[TextIO, ...] = ()
    dmesg: tuple[TextIO, ...] = ()
    cxl: tuple[TextIO, ...] = ()
    md_badblocks: tuple[TextIO, ...] = ()
    rasdaemon: tuple[str, ...] = ()
    since: "datetime | None" = None
    sysfs_badblocks: bool = False
    pfns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    offset: int | None = None

    @classmethod
    def of(cls, texts: tuple[str, ...], options: Mapping[str, Any]) -> Self:
        """Select these options from all options of a command."""
        return cls(texts, **{name: options[name] for name in cls._fields[1:] if name in options})

    @property
    def few(self) -> bool:
        """Whether there are only ranges in TARGET, and no other form."""
        reports = self.names_devices or self.mapfiles or self.badblocks or self.sysfs_badblocks
        return self.offset is None and not reports

    @property
    def is_one_list(self) -> bool:
        """Whether all failures are in one file of ranges, one map or one list of block numbers.

        There may be further ranges besides those of a file.
        """
        lists = bool(self.ranges_file) + len(self.mapfiles) + len(self.badblocks)
        if self.texts and not self.ranges_file:
            return False
        return lists == 1 and not (self.names_devices or self.sysfs_badblocks)

    @property
    def names_devices(self) -> bool:
        """Whether there is a form that names the failed device."""
        files = (self.ndctl, self.smart, self.dmesg, self.cxl, self.md_badblocks, self.rasdaemon)
        return any(files) or bool(self.pfns or self.addresses)

    @property
    def of_the_target(self) -> bool:
        """Whether there is a form with addresses in TARGET."""
        return bool(self.texts or self.ranges_file or self.mapfiles or self.badblocks)

    def check(self, *, target: bool, needed: bool = True) -> None:
        """Raise a usage error for missing failures, and for options without effect."""
        if self.statuses != STATUSES and not self.mapfiles:
            raise usage_error("--mapfile-status has no effect without --mapfile")
        if self.block_size is not None and not (self.badblocks or self.dmesg):
            raise usage_error("--block-size has no effect without --badblocks or --dmesg")
        if self.since is not None and not self.rasdaemon:
            raise usage_error("--since has no effect without --rasdaemon")
        if needed and not (self.of_the_target or self.names_devices or self.sysfs_badblocks):
            raise usage_error("missing RANGE or failure report; see --help")
        if self.offset is not None and not (target and (self.of_the_target or self.names_devices)):
            raise usage_error("--offset has no effect without TARGET and failures of it")
        if not target and (self.of_the_target or self.sysfs_badblocks):
            raise usage_error("missing TARGET of the ranges")
        if self.badblocks and self.block_size is None:
            raise usage_error("--badblocks needs --block-size; badblocks uses 1024 without -b")
