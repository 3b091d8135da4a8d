"""Render the report pages from the template files beside this module."""

from __future__ import annotations

import functools
import json

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def render(template: str, **values: object) -> Markup:
    """Render a template as HTML.

    Args:
        template: File name in the folder ``templates``.
        **values: What the template shows. Every text is escaped, except ``Markup``.

    Returns:
        The HTML.
    """
    return Markup(_environment().get_template(template).render(values))


def render_text(template: str, **values: object) -> str:
    """Render a template as plain text, in which nothing is escaped.

    Args:
        template: File name in the folder ``templates``, not of HTML.
        **values: What the template shows.

    Returns:
        The text.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("imaml.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["json"] = functools.partial(json.dumps, ensure_ascii=False)
    return found
