"""`/docs` and `/openapi.json`: the API, readable without internet access."""

from __future__ import annotations

from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from zander.routes.docs import page as _page
from zander.routes.docs.openapi import Json, document
from zander.routes.docs.reference import REFERENCE
from zander.wire.codec import dumps

SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


async def page(_: Request) -> Response:
    """This API, for people."""
    html, policy = _rendered()
    return Response(html, headers=SECURITY | {"Content-Security-Policy": policy}, media_type="text/html")


async def openapi(_: Request) -> Response:
    """This API, for programs."""
    return Response(_encoded(), headers=SECURITY, media_type="application/json")


@cache
def api() -> Json:
    """Describe the API: the OpenAPI document."""
    from zander.routes import ROUTES  # noqa: PLC0415 - they lead here

    return document(ROUTES, REFERENCE)


@cache
def _encoded() -> str:
    return dumps(api())


@cache
def _rendered() -> tuple[str, str]:
    return _page.render(api()), _page.content_security_policy()
