from __future__ import annotations

from importlib.metadata import version as installed_version

project = "dotmac-tasks"
author = "the dotmac-tasks maintainers"
release = version = installed_version("dotmac-tasks")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "dotmac-tasks"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False

# A word in single backticks of a docstring is code.
default_role = "code"
add_module_names = False
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Fields of a record are told in its own docstring.
napoleon_use_ivar = True

# No inventory of another project is fetched: a build needs no network. So only names of this
# project are checked, and those must exist.
nitpick_ignore_regex = [
    ("py:.*", r"(?!dotmac_tasks).*"),
    # Type variables of signatures, and private names.
    ("py:class", r"dotmac_tasks\S*\.(R|P|[A-Z][a-z]+T|_\w+)"),
    # Made and kept by the manager; explanation/architecture tells what they do.
    (
        "py:class",
        r"dotmac_tasks\S*\.(EventDispatcher|Heartbeat|IdempotencyGuard|OperationSettings)",
    ),
]
