"""The wire protocol as Markdown, to be read without running anything: `make protocol` writes `protocol.md`."""

from __future__ import annotations

import sys

from zander.routes import ROUTES
from zander.routes.docs.openapi import document
from zander.routes.docs.reference import REFERENCE
from zander.routes.docs.text import environment


def render() -> str:
    """Write the protocol down."""
    template = environment(autoescape=False).get_template("protocol.md.jinja")
    return template.render(document=document(ROUTES, REFERENCE))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(render())
