"""HTML pages from templates: every value is escaped, none may be missing, and a page is one file that loads nothing.

`page.html.j2` is the frame and `page.css` the look of all pages; a template that extends the frame stands beside the
code that fills it, with the few rules of style that are its own.
"""

from xml.etree import ElementTree

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vtc.io.escape import visible


def render(package: str, template: str, **values: object) -> str:
    """The page of a template, which stands in a package. Raises jinja2.UndefinedError for a value that is not given."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = _drawing
    return visible(environment.get_template(template).render(values))


def _drawing(svg: ElementTree.Element) -> Markup:
    """The only markup that does not stand in a template: a tree, whose texts and attributes ElementTree escapes."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))
