"""The map of the service: every endpoint, in the order of the README."""

from starlette.routing import BaseRoute, Route, WebSocketRoute

from zander.routes import buffer, health, history, sessions, stream, subscribe
from zander.routes.docs import endpoints as docs

ROUTES: list[BaseRoute] = [
    WebSocketRoute("/stream", stream.stream),
    WebSocketRoute("/subscribe/{user_id}", subscribe.subscribe),
    Route("/health", health.health),
    Route("/health/ready", health.ready),
    Route("/buffer/{user_id}/latest", buffer.latest),
    Route("/buffer/{user_id}/last/{n}", buffer.last),
    Route("/buffer/{user_id}/range", buffer.range_),
    Route("/buffer/{user_id}/stats", buffer.stats),
    Route("/history/{user_id}", history.history),
    Route("/sessions", sessions.sessions),
    Route("/sessions/{session_id}", sessions.session),
    Route("/streams", health.streams),
    Route("/stats", health.stats),
    Route("/docs", docs.page),
    Route("/openapi.json", docs.openapi),
]
