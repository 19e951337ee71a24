"""The OpenAPI document, built from the routes and the Structs themselves, so that it cannot promise anything else.

What neither a route nor a Struct can say is given as a `Reference`. OpenAPI has no place for WebSockets: they are under
`x-websockets`, terms and rules under `x-terms` and `x-rules`, the layout of a binary message under `x-binary-chunk`,
the close codes under `x-close-codes`, and the codes of errors under `x-error-codes`. Every message is a schema like any
other.
"""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from starlette.routing import BaseRoute, Route, WebSocketRoute

from zander.errors import ClientError, CloseCode

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
BINARY_TYPES = {"u8": "B", "u16": "H", "i64": "q"}  # of the layout, as `struct` writes them


class Parameter(NamedTuple):
    """A path or query parameter; `kind` is a type that msgspec knows."""

    name: str
    kind: Any
    meaning: str
    default: str | int | None = None
    required: bool = False


class Endpoint(NamedTuple):
    """Answers of an HTTP endpoint: the type of its 200, and of other statuses where that is not the error object."""

    answer: Any
    errors: tuple[int, ...] = ()
    query: tuple[Parameter, ...] = ()
    needs_key: bool = True
    media_type: str = "application/json"
    other_media: Mapping[str, Json] = {}
    headers: Mapping[str, str] = {}
    other_answers: Mapping[int, tuple[str, Any]] = {}


class Channel(NamedTuple):
    """Messages of a WebSocket endpoint, the first one apart; `rules` are sentences about them."""

    summary: str
    key: str
    rules: tuple[str, ...]
    first: Any
    receives: tuple[Any, ...]
    sends: tuple[Any, ...]
    binary: tuple[str, ...]  # "receives", "sends"
    close_codes: tuple[CloseCode, ...]
    query: tuple[Parameter, ...] = ()


class Reference(NamedTuple):
    """Everything that neither a route nor a Struct says: endpoints by path, rules, examples."""

    endpoints: Mapping[str, Endpoint]
    channels: Mapping[str, Channel]
    path_parameters: Mapping[str, Parameter]
    error: type[Struct]
    structs: tuple[type[Struct], ...]  # to describe besides those that the endpoints name
    examples: Mapping[str, Any]  # by name of the Struct
    error_codes: Mapping[str, str]
    binary_chunk: tuple[tuple[str, str, str], ...]  # type, field, meaning
    terms: Mapping[str, str]
    rules: Mapping[str, tuple[str, ...]]  # sentences by subject
    description: str
    needs_key: bool = True  # where an endpoint does


def document(routes: Iterable[BaseRoute], reference: Reference) -> Json:
    """Describe the routes; KeyError for one that the reference does not know."""
    http, channels = _split(routes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Zander", "version": version("zander-eeg"), "description": reference.description},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}] if reference.needs_key else [],
        "paths": {route.path: {"get": _operation(route, reference)} for route in http},
        "components": {
            "schemas": _schemas(reference),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer …`"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "x-websockets": {route.path: _channel(route, reference) for route in channels},
        "x-terms": dict(reference.terms),
        "x-rules": {subject: list(sentences) for subject, sentences in reference.rules.items()},
        "x-binary-chunk": _layout(reference.binary_chunk),
        "x-close-codes": [_close_code(code) for code in CloseCode],
        "x-error-codes": dict(reference.error_codes),
    }


def _split(routes: Iterable[BaseRoute]) -> tuple[list[Route], list[WebSocketRoute]]:
    known = list(routes)
    return [r for r in known if isinstance(r, Route)], [r for r in known if isinstance(r, WebSocketRoute)]


# Endpoints.


def _operation(route: Route, reference: Reference) -> Json:
    endpoint = reference.endpoints[route.path]
    content: Json = {endpoint.media_type: {"schema": _schema(endpoint.answer)}, **endpoint.other_media}
    answers: Json = {"200": {"description": "The answer.", "content": content}}
    if endpoint.headers:
        answers["200"]["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in endpoint.headers.items()
        }
    for status, (meaning, kind) in endpoint.other_answers.items():
        answers[str(status)] = _answer(meaning, kind)
    for status in ((401,) if endpoint.needs_key else ()) + endpoint.errors:
        answers[str(status)] = _answer(_error_meanings()[status], reference.error)
    operation: Json = _names(route.endpoint) | {"parameters": _parameters(route.path, endpoint.query, reference)}
    if not endpoint.needs_key:
        operation["security"] = []
    return operation | {"responses": answers}


def _answer(meaning: str, kind: Any) -> Json:
    return {"description": meaning, "content": {"application/json": {"schema": _schema(kind)}}}


def _names(endpoint: Callable[..., Any]) -> Json:
    summary, _, more = (endpoint.__doc__ or "").partition("\n\n")
    names = {"operationId": f"{endpoint.__module__.rpartition('.')[2]}_{endpoint.__name__.rstrip('_')}"}
    return names | {"summary": summary} | ({"description": " ".join(more.split())} if more else {})


def _parameters(path: str, query: tuple[Parameter, ...], reference: Reference) -> list[Json]:
    named = [reference.path_parameters[name] for name in re.findall(r"{(\w+)}", path)]
    return [_parameter("path", it) | {"required": True} for it in named] + [_parameter("query", it) for it in query]


def _parameter(place: str, parameter: Parameter) -> Json:
    schema = _schema(parameter.kind)
    if parameter.default is not None:
        schema["default"] = parameter.default
    found: Json = {"name": parameter.name, "in": place, "description": parameter.meaning, "schema": schema}
    if schema.get("type") == "array":  # comma-separated in one parameter
        found |= {"style": "form", "explode": False}
    return found | ({"required": True} if parameter.required else {})


def _error_meanings() -> dict[int, str]:
    return {kind.status: (kind.__doc__ or "").partition("\n")[0] for kind in ClientError.__subclasses__()}


# WebSockets.


def _channel(route: WebSocketRoute, reference: Reference) -> Json:
    channel = reference.channels[route.path]
    return {
        "summary": channel.summary,
        "key": channel.key,
        "rules": list(channel.rules),
        "parameters": _parameters(route.path, channel.query, reference),
        "first": _schema(channel.first),
        "receives": [_schema(kind) for kind in channel.receives],
        "sends": [_schema(kind) for kind in channel.sends],
        "binary": list(channel.binary),
        "closeCodes": [int(code) for code in channel.close_codes],
    }


def _close_code(code: CloseCode) -> Json:
    return {"code": int(code), "name": code.name.lower(), "meaning": code.meaning, "comeBack": code.invites_return}


def _layout(fields: Iterable[tuple[str, str, str]]) -> list[Json]:
    """Number the fields' offsets: packed, little-endian."""
    found, offset = [], 0
    for kind, field, meaning in fields:
        found.append({"offset": offset, "type": kind, "field": field, "meaning": meaning})
        offset += struct.calcsize(BINARY_TYPES[kind]) if kind in BINARY_TYPES else 0
    return found


# Schemas.


def _schema(kind: Any) -> Json:
    """Refer to a Struct, spell anything else out."""
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return schema


def _schemas(reference: Reference) -> Json:
    kinds: list[Any] = [reference.error, *reference.structs]
    for endpoint in reference.endpoints.values():
        kinds += [endpoint.answer, *(kind for _, kind in endpoint.other_answers.values())]
    for channel in reference.channels.values():
        kinds += [channel.first, *channel.receives, *channel.sends]
    _, components = msgspec.json.schema_components(kinds, ref_template=REF)
    return {name: _schema_object(components[name]) | _examples(name, reference) for name in sorted(components)}


def _schema_object(made: Json) -> Json:
    """Take the indentation out of the description, as Python 3.13 does when it compiles a docstring."""
    return made | {"description": inspect.cleandoc(made["description"])} if "description" in made else made


def _examples(name: str, reference: Reference) -> Json:
    return {"examples": [reference.examples[name]]} if name in reference.examples else {}
