"""The API reference as one HTML page: `page.html`, filled from the OpenAPI document."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from markupsafe import Markup, escape

from zander.routes.docs.examples import PROGRAM
from zander.routes.docs.openapi import Json
from zander.routes.docs.text import TEMPLATES, environment

_MARKDOWN = re.compile(r"`(?P<code>[^`]+)`|\[(?P<title>[^\]]+)\]\((?P<link>#[\w-]+)\)")


def render(document: Json) -> str:
    """Fill the page."""
    made = environment(autoescape=True)
    made.filters["prose"] = prose
    return made.get_template("page.html").render(document=document, program=PROGRAM)


def content_security_policy() -> str:
    """Allow the page its own style and nothing else."""
    style = (TEMPLATES / "page.html").read_text("utf-8").partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def prose(text: str) -> Markup:
    """Turn `code` and [links](#anchor) into HTML, and escape the rest."""
    html, end = Markup(), 0
    for found in _MARKDOWN.finditer(text):
        html += escape(text[end : found.start()])
        if code := found["code"]:
            html += Markup("<code>{}</code>").format(code)
        else:
            html += Markup('<a href="{}">{}</a>').format(found["link"], found["title"])
        end = found.end()
    return html + escape(text[end:])
