"""placeholder until the docs page lands"""
from starlette.requests import Request
from starlette.responses import Response


async def page(_: Request) -> Response:
    return Response("docs")


async def openapi(_: Request) -> Response:
    return Response("{}")
