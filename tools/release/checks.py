"""Checks of the built packages: their metadata, and missing or unexpected files."""

import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

# Comes with hatchling, which builds the packages.
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from tools.release.building import version

__all__ = ["check_sdist", "check_wheel"]

#: What the wheel installs besides the package: by its path there, the file or folder here.
_SHARED = {
    "share/man/man1": "docs/man",
    "share/whoseblock/grafana": "share/grafana",
    "share/whoseblock/hooks": "share/hooks",
    "share/whoseblock/prometheus": "share/prometheus",
    "share/whoseblock/systemd": "share/systemd",
    "share/whoseblock/whoseblock-watch.service": "src/whoseblock/watch/whoseblock-watch.service",
    "share/whoseblock/whoseblock-watch.socket": "src/whoseblock/watch/whoseblock-watch.socket",
    "share/whoseblock/policy.toml": "share/policy.toml",
}
#: Files that are of use only in a checkout.
_ONLY_IN_CHECKOUT = (".ci/",)


def _compare(kind: str, found: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{kind} lacks {name}" for name in sorted(expected - found)),
        *(f"{kind} holds {name}, which is unexpected" for name in sorted(found - expected)),
    ]


def _check_metadata(kind: str, text: bytes, sources: Path) -> list[str]:
    """Compare the metadata of a package with pyproject.toml."""
    project = tomllib.loads((sources / "pyproject.toml").read_text())["project"]
    # Raises ExceptionGroup if the metadata breaks the specification.
    description = Metadata.from_email(text, validate=True).description
    fields = message_from_bytes(text)
    expected = {
        "Name": [project["name"]],
        "Version": [version()],
        "Summary": [project["description"]],
        "Requires-Python": [project["requires-python"]],
        "License-Expression": [project["license"]],
        "License-File": project["license-files"],
        "Description-Content-Type": ["text/markdown"],
        "Project-URL": [f"{name}, {url}" for name, url in project["urls"].items()],
        "Classifier": project["classifiers"],
        "Provides-Extra": sorted(project["optional-dependencies"]),
    }
    problems = [
        f"{kind}: {name} is {fields.get_all(name)}, expected {values}"
        for name, values in expected.items()
        if sorted(fields.get_all(name) or []) != sorted(values)
    ]
    required = [Requirement(one) for one in fields.get_all("Requires-Dist") or []]
    core = {str(one) for one in required if one.marker is None}
    if core != {str(Requirement(one)) for one in project["dependencies"]}:
        problems.append(f"{kind}: without extras it requires {sorted(core)}")
    if description != (sources / "README.md").read_text():
        problems.append(f"{kind}: its description is not README.md")
    return problems


def _shared(sources: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what the wheel installs besides the package: the path there, and the content."""
    for name, own in _SHARED.items():
        path = sources / own
        if path.is_dir():
            for file in path.iterdir():
                yield f"{name}/{file.name}", file.read_bytes()
        else:
            yield name, path.read_bytes()


def check_wheel(wheel: Path, sources: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info, data = f"whoseblock-{version()}.dist-info", f"whoseblock-{version()}.data/data"
    package = {
        f"{path.relative_to(sources / 'src')}": path.read_bytes()
        for path in (sources / "src" / "whoseblock").rglob("*")
        if path.is_file()
    }
    shared = {f"{data}/{name}": content for name, content in _shared(sources)}
    licence = {f"{info}/licenses/LICENSE": (sources / "LICENSE").read_bytes()}
    expected = {**package, **shared, **licence}
    made = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    problems = _compare("the wheel", set(contents), set(expected) | made)
    problems += [
        f"the wheel holds another {name} than the project"
        for name, content in expected.items()
        if contents.get(name, content) != content
    ]
    if not problems:
        problems += _check_metadata("the wheel", contents[f"{info}/METADATA"], sources)
        if "whoseblock = whoseblock.cli:main" not in contents[f"{info}/entry_points.txt"].decode():
            problems.append("the wheel does not install the command whoseblock")
        if not wheel.name.endswith("-py3-none-any.whl"):
            problems.append(f"{wheel.name} is not for every platform")
    return problems


def check_sdist(sdist: Path, sources: Path) -> list[str]:
    """Return what is wrong with a source distribution."""
    top = f"whoseblock-{version()}/"
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        found = {member.name for member in members}
        information = archive.extractfile(f"{top}PKG-INFO")
        metadata = information.read() if information else b""
    files = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    expected = {f"{top}{name}" for name in files if not name.startswith(_ONLY_IN_CHECKOUT)}
    return [
        *_compare("the source distribution", found, expected | {f"{top}PKG-INFO"}),
        *_check_metadata("the source distribution", metadata, sources),
    ]
