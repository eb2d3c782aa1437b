from pathlib import Path

import pytest
from tools.prose.__main__ import main
from tools.prose.checks import banned_words, check_file, docstring_faults, help_faults
from tools.prose.files import TOP, pending, selected
from tools.prose.sentences import MAX_WORDS, sentences


def found(source: str) -> list[str]:
    return [what for _, what in docstring_faults(source)]


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Return the owners of a range."""',
        'def f():\n    """Parse, and verify."""',
        'async def f():\n    """Read a block."""',
        "def f():\n    pass",
        'class A:\n    """A range of bytes."""\n    def f(self):\n        """Close it."""',
        'class A:\n    @property\n    def f(self):\n        """The length in bytes."""',
        'class A:\n    @property\n    def f(self):\n        """Whether it is empty."""',
        'class A:\n    @functools.cached_property\n    def f(self):\n        """The size."""',
        '"""Ranges of bytes."""',
    ],
)
def test_docstrings_that_follow_the_rules(source: str) -> None:
    assert found(source) == []


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Give the owners of a range."""',
        'def f():\n    """return the owners of a range."""',
        'def f():\n    """Returns the owners of a range."""',
        'def f():\n    """The owners of a range."""',
        'def f():\n    """Whether it is empty."""',
        'def f():\n    """"""',
        'def test_f():\n    """What is shown here."""',
        'def f():\n    def g():\n        """Say it."""',
        'class A:\n    """What a range is."""',
        'class A:\n    @property\n    def f(self):\n        """How long it is."""',
        '"""Where ranges come from."""',
    ],
)
def test_docstrings_that_break_the_rules(source: str) -> None:
    assert len(found(source)) == 1


def test_a_long_sentence_of_a_docstring_is_found_at_its_line() -> None:
    long = "word " * MAX_WORDS + "word."
    source = f'def f():\n    """Return it.\n\n    Short.\n    A {long}\n    """\n'
    assert [line for line, _ in docstring_faults(source)] == [5]


def test_a_long_help_text_is_found() -> None:
    source = f'option("--all",\n    help="{"word " * (MAX_WORDS + 1)}")'
    assert [line for line, _ in help_faults(source)] == [2]
    assert list(help_faults('option("--all", help="Show all.")')) == []


def test_sentences_of_markdown() -> None:
    text = (
        "# Title\n\nOne sentence\nin two lines. Another, of `a.b. C`? And e.g. a third\n"
        "- an item\n  of two lines\n- another. With two\n\n"
        "```sh\nnot. This\n```\n\n| a cell | another |\n|---|---|\n\n    code. Too\n\n"
        "<!-- a comment -->\nThe end."
    )
    assert [(line, words) for line, words in sentences(text)] == [
        (1, "Title"),
        (3, "One sentence in two lines."),
        (4, "Another, of `a.b. C`?"),
        (4, "And e.g. a third"),
        (5, "an item of two lines"),
        (7, "another."),
        (7, "With two"),
        (13, "a cell"),
        (13, "another"),
        (14, "---"),
        (14, "---"),
        (19, "The end."),
    ]


def test_a_sentence_may_begin_with_the_name_of_the_program() -> None:
    assert len(list(sentences("It failed. whoseblock reports it."))) == 2


def test_code_and_links_count_as_they_are_read() -> None:
    (sentence,) = sentences("See [the guide](docs/a b c.md) of `pip install x`, or ``a b`` - now.")
    assert sentence.words == 8


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Free: nobody has it.", 1),
        ("one\nSomebody's", 2),
        ("# so that the caller is\n# told of it", 1),
        ('"the kernel says "\n    "so"', 1),
        ("one\n\nIn the end, all", 3),
        ("def give_owners() -> None:", 1),
        ("class Asked(NamedTuple):", 1),
        ("State.LEFT", 1),
    ],
)
def test_banned_words_are_found(text: str, line: int) -> None:
    assert [at for at, _ in banned_words(text)] == [line]


@pytest.mark.parametrize(
    "text",
    ["Asked to stop", "It told them", "the end, in", "nobodyx", "from hypothesis import given"],
)
def test_other_words_are_not_banned(text: str) -> None:
    assert list(banned_words(text)) == []


def test_faults_of_a_file_are_ordered_and_named(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""Where it is."""\n\n\ndef f():\n    """Give what nobody has."""\n')
    faults = check_file(file)
    assert [fault.line for fault in faults] == [1, 5, 5]
    assert str(faults[0]).startswith(f"{file}:1: the docstring begins with 'Where'")


def test_the_program_fails_with_the_faults_of_the_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.md").write_text("Short.\n")
    assert main(["--paths", str(tmp_path)]) == 0
    (tmp_path / "bad.md").write_text("It is nobody's.\n")
    assert main(["--paths", str(tmp_path)]) == 1
    output, error = capsys.readouterr()
    assert output.startswith(f"{tmp_path}/bad.md:1: banned: 'nobody'")
    assert error == "prose: 1 faults in 2 files\n"


def test_pending_paths_exist_and_are_left_out() -> None:
    assert [path for path in pending() if not path.exists()] == []
    files = selected([TOP], [TOP / "src"])
    assert TOP / "README.md" in files
    assert not any(file.is_relative_to(TOP / "src") for file in files)
