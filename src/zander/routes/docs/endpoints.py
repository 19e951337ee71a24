"""`/docs` and `/openapi.json`: the API, readable without internet access."""

from __future__ import annotations

from functools import lru_cache

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from zander.routes.docs import page as _page
from zander.routes.docs.openapi import Json, document
from zander.routes.docs.reference import with_settings
from zander.settings import Settings
from zander.wire.codec import dumps

SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


async def page(request: Request) -> Response:
    """This API, for people."""
    html, policy = _rendered(request.app)
    return Response(html, headers=SECURITY | {"Content-Security-Policy": policy}, media_type="text/html")


async def openapi(request: Request) -> Response:
    """This API, for programs."""
    return Response(_encoded(request.app), headers=SECURITY, media_type="application/json")


@lru_cache(maxsize=1)  # a process has one app
def api(app: Starlette) -> Json:
    """Describe the routes of an app: the OpenAPI document. An app that does not run has the default settings."""
    running = getattr(app.state, "service", None)
    return document(app.routes, with_settings(running.settings if running else Settings()))


@lru_cache(maxsize=1)
def _encoded(app: Starlette) -> str:
    return dumps(api(app))


@lru_cache(maxsize=1)
def _rendered(app: Starlette) -> tuple[str, str]:
    return _page.render(api(app)), _page.content_security_policy()
