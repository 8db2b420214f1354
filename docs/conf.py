"""Sphinx: MyST pages, furo, and the reference from docstrings."""

from importlib.metadata import version as version_of

project = "sa_writethrough"
author = "The sa_writethrough authors"
project_copyright = "2026, The sa_writethrough authors"
release = version = version_of("sa-writethrough")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sa_writethrough {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # docstrings write `name`
