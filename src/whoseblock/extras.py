"""Import the libraries of extras in pyproject.toml."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final, NamedTuple

from whoseblock.errors import MissingExtraError

__all__ = ["EXTRAS", "check_extra", "import_extra"]


class Extra(NamedTuple):
    """An extra: the part that needs it, its package, and the module of that package."""

    needed_by: str
    package: str
    module: str


#: By their names in pyproject.toml.
EXTRAS: Final = {
    "journal": Extra("the journal", "SQLAlchemy", "sqlalchemy"),
    "postgresql": Extra("a journal in PostgreSQL", "pg8000", "pg8000"),
    "watch": Extra("the metrics of the daemon", "prometheus-client", "prometheus_client"),
    "emulate": Extra("an emulated device", "mfusepy", "mfusepy"),
    "parquet": Extra("a table of Arrow or Parquet", "pyarrow", "pyarrow"),
    "report": Extra("a report as HTML", "Jinja2", "jinja2"),
    "study": Extra("the figures of a study", "matplotlib", "matplotlib"),
}


def import_extra(name: str) -> ModuleType:
    """Import the module of an extra.

    Raises `MissingExtraError` if it is not installed, and whatever its own import raises.
    """
    extra = EXTRAS[name]
    try:
        return import_module(extra.module)
    except ModuleNotFoundError as error:
        if error.name != extra.module:
            raise
        raise _missing(name) from error


def check_extra(name: str) -> None:
    """Raise `MissingExtraError` if an extra is not installed, without importing it."""
    try:
        found = find_spec(EXTRAS[name].module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise _missing(name)


def _missing(name: str) -> MissingExtraError:
    extra = EXTRAS[name]
    return MissingExtraError(
        f"{extra.needed_by} needs {extra.package}; install whoseblock[{name}]",
        hint=f"pip install 'whoseblock[{name}]'",
    )
