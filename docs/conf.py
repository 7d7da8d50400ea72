"""The documentation site: `make docs` builds it offline, without warnings, and its pages load nothing from elsewhere.

Formulas become MathML while building (math-core): browsers draw it by themselves, where MathJax would be fetched from a
CDN at every view. An unknown command of LaTeX fails the build. Docstrings are Markdown; Sphinx expects its own markup.
"""

import re

from docutils import nodes
from math_core import LatexError, LatexToMathML

import rareneuron

project = "rareneuron"
author = "the rareneuron authors"
copyright = "the rareneuron authors, Apache-2.0"
version = release = rareneuron.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["conf.py", "_static", "images"]
highlight_language = "none"
nitpicky = False

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 4

autosummary_generate = False  # everything stands on one page
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # types stand in the signature
napoleon_custom_sections = [("Source", "Source")]
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"rareneuron {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}

mathml = LatexToMathML(fancy_error=False)


def as_mathml(writer, node):
    """Write a formula; used for those in a line and those of their own."""
    try:
        formula = mathml.convert_with_local_state(node.astext(), displaystyle=isinstance(node, nodes.math_block))
    except LatexError as error:
        raise ValueError(
            f"{writer.builder.current_docname}: the formula {node.astext()!r} is wrong: {error}"
        ) from error
    writer.body.append(f'<div class="math">{formula}</div>' if isinstance(node, nodes.math_block) else formula)
    raise nodes.SkipNode


def from_markdown(lines):
    """Turn the Markdown of a docstring into reStructuredText, line by line and in place."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>> "))  # up to an empty line
        if in_example or line.lstrip().startswith((".. ", "| ")):  # directives, and sphinx-click's line blocks
            continue
        parts = re.split(r"(``[^`]+``|`[^`]+`|\$[^$]+\$)", line)  # every second one is code or a formula
        parts[1::2] = [f":math:`{part[1:-1]}`" if part[0] == "$" else f"``{part.strip('`')}``" for part in parts[1::2]]
        parts[0::2] = [re.sub(r"docs/([\w-]+)\.md", r":doc:`\1`", re.sub(r"[|*_]", r"\\\g<0>", p)) for p in parts[0::2]]
        line = "".join(parts).replace(r"\*\*Required\*\*", "**Required**")  # sphinx-click's
        lines[i] = re.sub(r"\bEq\. ", "Eq.\N{WORD JOINER} ", line)  # or autosummary would end the sentence there


def with_examples(lines):
    """Turn the line blocks that sphinx-click makes of a command's examples into code."""
    for i in reversed(range(len(lines))):
        if lines[i].startswith("| "):
            first = i == 0 or not lines[i - 1].startswith("| ")
            lines[i : i + 1] = [*([".. code-block:: sh", ""] if first else []), "   " + lines[i][2:]]


def setup(app):
    """Connect the above to what reads docstrings and commands."""
    app.add_html_math_renderer("mathml", (as_mathml, None), (as_mathml, None))
    app.connect(  # before napoleon, which takes `Args:` and its kind apart
        "autodoc-process-docstring", lambda app, what, name, obj, options, lines: from_markdown(lines), priority=400
    )
    app.connect("sphinx-click-process-options", lambda app, ctx, lines: from_markdown(lines))
    app.connect(
        "sphinx-click-process-description", lambda app, ctx, lines: from_markdown(lines) or with_examples(lines)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
