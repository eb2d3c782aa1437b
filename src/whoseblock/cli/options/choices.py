"""The values of the options for the answers of ``whoseblock lookup``."""

from typing import NamedTuple

from whoseblock.cli.options.usage import usage_error
from whoseblock.fs.base import MAX_OWNERS

__all__ = ["Choices"]


class Choices(NamedTuple):
    """The values of the options; the fields have the names of the options."""

    as_json: bool = False
    no_paths: bool = False
    no_scan: bool = False
    scan: bool = False
    max_owners: int = MAX_OWNERS
    fail_incomplete: bool = False
    processes: bool = False
    verify: bool = False
    summary: bool = False
    output: str | None = None
    report: str | None = None

    @property
    def is_table(self) -> bool:
        """Whether the output is a table, by its name."""
        return self.output is not None and self.output.endswith((".parquet", ".arrow"))

    def check(self, *, offline: bool) -> None:
        """Raise a usage error for options that have no effect together."""
        if self.scan and self.no_scan:
            raise usage_error("--scan and --no-scan exclude each other")
        if self.is_table:
            from whoseblock.extras import check_extra

            check_extra("parquet")
            others = {"summary": "--summary", "as_json": "--json", "report": "--report"}
            for name in (others[key] for key in others if getattr(self, key)):
                raise usage_error(f"{name} has no effect with a table in --output")
        elif self.output is not None and not self.output.endswith((".csv", ".json")):
            raise usage_error("the FILE of --output must end in .csv, .json, .parquet or .arrow")
        for name in ("processes", "verify"):
            if not getattr(self, name):
                continue
            for other in ("output", "report", "summary"):
                if getattr(self, other):
                    raise usage_error(f"--{name} has no effect with --{other}")
            if offline:
                raise usage_error(f"--{name} queries the kernel, but --offline does not; drop one")
