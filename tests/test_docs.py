"""The documentation: its examples are run, and its statements compared with the code.

Each document is worked through from top to bottom in a folder of its own, which holds the demo's
image as disk.img:

- ``console`` blocks: each line after ``$ `` is a command, and what follows is what it must print;
- ``pycon`` blocks: sessions, run as doctest does; all of one document are one session;
- ``python`` blocks: programs that must end well;
- a block after ``<!-- needs: PROGRAM -->`` is run where that program is;
- any block after ``<!-- file: NAME -->`` becomes that file;
- ``sh`` blocks are not run, and must say why in ``<!-- not run: REASON -->``.
"""

import ast
import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from demo.demo import unpack
from tests.support.tools import program

import whoseblock
from whoseblock.errors import exit_codes
from whoseblock.fs.arrays import KINDS, WHATS
from whoseblock.fs.base import Answer, FileOwner, MetadataOwner

TOP = Path(__file__).resolve().parent.parent
SOURCES = sorted((TOP / "src").rglob("*.py"))
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("demo/*.md"), *TOP.glob("docs/**/*.md")])
LANGUAGES = {"", "console", "pycon", "python", "sh", "text"}
TIMEOUT_S = 120

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[str(path.relative_to(TOP)) for path in DOCUMENTS]
)


class Block(NamedTuple):
    """A fenced block, with the comment in the line before it, if any."""

    line: int
    language: str
    comment: str
    text: str

    @property
    def file(self) -> str:
        return self._after("file:")

    @property
    def needs(self) -> str:
        return self._after("needs:")

    @property
    def reason_not_to_run(self) -> str:
        return self._after("not run:")

    def _after(self, word: str) -> str:
        found, _, rest = self.comment.partition(word)
        return rest.strip() if not found else ""


def blocks(document: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document."""
    lines = iter(enumerate(document.read_text("utf-8").splitlines(), 1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            text = []
            for _, inside in lines:
                if inside == "```":
                    break
                text.append(inside + "\n")
            else:
                raise AssertionError(f"{document}, line {number}: the block does not end")
            comment = re.fullmatch(r"<!-- (.*) -->", before)
            yield Block(number, line[3:], comment[1] if comment else "", "".join(text))
        before = line


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with its expected output."""
    first, *shown = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not first, f"line {block.line}: a console block begins with '$ '"
    for one in shown:
        command, _, output = one.partition("\n")
        yield command, output


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Provide an environment in which whoseblock and python3 are this project's and this Python."""
    folder = tmp_path_factory.mktemp("bin")
    for name, arguments in {"whoseblock": " -m whoseblock", "python3": ""}.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        program.chmod(0o755)
    return {
        "PATH": os.pathsep.join((str(folder), os.environ.get("PATH", os.defpath), "/usr/sbin")),
        "PYTHONPATH": str(Path(whoseblock.__file__).parents[1]),
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder),
        "WHOSEBLOCK_KEY": str(folder / "key"),
    }


def run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command to its end; give its exit code and all that it printed."""
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8")


def run_session(block: Block, document: Path, names: dict[str, object]) -> None:
    """Run a session, in which ``names`` are known, and to which it adds."""
    name = document.name
    session = doctest.DocTestParser().get_doctest(block.text, names, name, name, block.line)
    said: list[str] = []
    runner = doctest.DocTestRunner()
    failed = runner.run(session, out=said.append, clear_globs=False).failed
    names.update(session.globs)
    assert not failed, "".join(said)


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if any(block.language for block in blocks(path))],
    ids=lambda path: str(path.relative_to(TOP)),
)
def test_shown_commands_print_what_is_shown(
    document: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(tmp_path / "disk.img")
    names: dict[str, object] = {}
    for block in blocks(document):
        where = f"{document.name}, line {block.line}"
        assert block.language in LANGUAGES, where
        if block.file:
            (tmp_path / block.file).write_text(block.text, "utf-8")
        elif block.language == "console":
            if block.needs:
                program(block.needs)
            for command, expected in commands(block):
                _, printed = run(["sh", "-c", command], environment)
                assert printed == expected, f"{where}: {command}"
        elif block.language == "pycon":
            run_session(block, document, names)
        elif block.language == "python":
            code, printed = run([sys.executable, "-c", block.text], environment)
            assert code == 0, f"{where}: {printed}"
        elif block.language == "sh":
            assert block.reason_not_to_run, f"{where}: run it, or say why not"


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert path.is_relative_to(TOP), target
        assert not anchor or anchor in anchors(path), target


@every_document
def test_no_document_names_a_place_of_one_machine(document: Path) -> None:
    assert not re.search(r"/(?:work|tmp|home|root)/", document.read_text("utf-8"))


def test_every_exit_code_is_in_the_table() -> None:
    text = (TOP / "docs/exit-codes.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == exit_codes()
    assert [int(code) for code, _ in rows] == list(exit_codes())


def test_the_contract_has_every_field_and_word() -> None:
    text = (TOP / "docs/json.md").read_text("utf-8")
    shown = set(re.findall(r"`([^`\n]+)`", text))
    fields = {
        name for record in (Answer, FileOwner, MetadataOwner) for name in record.__struct_fields__
    }
    assert (fields | {"kind", *KINDS, *WHATS}) - shown == {""}


def sentences() -> list[str]:
    """Return every string in the code, with ``…`` for the fields of f-strings."""
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_bytes())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_notes_are_those_of_the_code() -> None:
    text = (TOP / "docs/guides/notes.md").read_text("utf-8")
    said = sentences()
    for note in re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE):
        pieces = [piece.strip(" ,;:") for piece in note.split("…")]
        missing = [piece for piece in pieces if not any(piece in sentence for sentence in said)]
        assert missing == [], note


def test_architecture_has_every_module() -> None:
    text = (TOP / "ARCHITECTURE.md").read_text("utf-8")
    for source in SOURCES:
        folders = source.parent.relative_to(TOP / "src/whoseblock").parts
        within = any(f"`{'/'.join(folders[:depth])}/`" in text for depth in range(1, 4))
        assert within or f"{source.name}`" in text or source.name.startswith("__"), source


def test_architecture_names_existing_files_only() -> None:
    text = (TOP / "ARCHITECTURE.md").read_text("utf-8")
    code = "\n".join(source.read_text("utf-8") for source in SOURCES)
    places = [f"{path}" for source in SOURCES for path in (source, source.parent)]
    lines = [line for line in text.splitlines() if "planned" not in line]
    for span in re.findall(r"`([^`\n]+)`", "\n".join(lines)):
        if (TOP / span).exists():
            continue
        if re.fullmatch(r"[\w/]+(?:\.py|/)", span):
            name = span.rstrip("/")
            assert any(place.endswith(f"/{name}") for place in places), span
        elif re.fullmatch(r"[\w.]+(?:\(\))?", span):
            word = span.removesuffix("()").rpartition(".")[2]
            assert re.search(rf"\b{word}\b", code), span
