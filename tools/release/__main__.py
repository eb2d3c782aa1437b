"""``make release``: build the wheel and the source distribution into dist/, check and try them.

The packages are made from what is committed.  Both are built twice, in different folders, and must
be equal byte by byte.  Then each is installed into a virtual environment of its own and run there.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.release.building import TOP, build, commit_time, copy_sources, is_clean, version
from tools.release.checks import check_sdist, check_wheel
from tools.release.trial import try_package


def _fail(problems: list[str]) -> int:
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    return 1


def _equal(one: list[Path], other: list[Path]) -> list[str]:
    return [
        f"two builds of {first.name} differ"
        for first, second in zip(one, other, strict=True)
        if first.name != second.name or first.read_bytes() != second.read_bytes()
    ]


def main() -> int:
    """Build, check and try the packages; return the exit status."""
    if not is_clean():
        return _fail(["there are changes that are not committed; commit or remove them"])
    epoch = commit_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builds = []
        for label in ("one", "two"):
            sources = copy_sources(folder / label / "sources")
            builds.append(build(sources, folder / label, epoch))
        packages = builds[0]
        sdist, wheel = packages
        print(f"built {version()} twice, from the last commit (SOURCE_DATE_EPOCH={epoch})")
        problems = [
            *_equal(*builds),
            *check_sdist(sdist, folder / "one" / "sources"),
            *check_wheel(wheel, folder / "one" / "sources"),
        ]
        if problems:
            return _fail(problems)
        print("both builds are equal; metadata, files, licence and man page are as expected")
        for package in packages:
            try:
                done = try_package(package, folder / f"try-{package.suffix[1:]}")
            except subprocess.CalledProcessError as error:
                return _fail([f"{package.name}: {error}", error.stderr])
            if done:
                return _fail([f"{package.name}: {problem}" for problem in done])
            print(f"{package.name}: installed without extras, and run")
        (TOP / "dist").mkdir(exist_ok=True)
        for package in packages:
            shutil.copyfile(package, TOP / "dist" / package.name)
            print(f"dist/{package.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
