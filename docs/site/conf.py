# noqa: INP001 - Sphinx executes it
"""The configuration of Sphinx for the site: ``make docs``.

The sources are the Markdown files of the checkout, so that their links work in a forge, too.
"""

from whoseblock import __version__

project = "whoseblock"
author = "the whoseblock developers"
release = version = __version__
copyright = "the whoseblock developers, Apache-2.0"  # noqa: A001 - the name that Sphinx asks for

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/*.rst",
    "docs/guides/*.md",
    "docs/internals/*.md",
    "demo/README.md",
    "*.md",
]
# The index includes it.
exclude_patterns = ["build", ".venv", "docs/README.md"]

# Anchors of headings as forges make them.
myst_heading_anchors = 4

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
# `Name` in a docstring is a reference where it has a target.
default_role = "any"
suppress_warnings = ["ref.any", "ref.python", "ref.class"]

html_theme = "furo"
html_title = f"whoseblock {release}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
