"""The API reference as one HTML page, from the OpenAPI document; the frame and the looks are in `docs.html`."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from re import split
from string import Template

from zander.routes.docs.meanings import EXAMPLE
from zander.routes.docs.openapi import Json

SCHEMAS = "#/components/schemas/"


class Html(str):
    """Markup; any other string is text and gets escaped."""


def render(document: Json) -> str:
    """Lay the document out."""
    schemas = document["components"]["schemas"]
    told: set[str] = set()
    channels = [_channel(path, channel, schemas, told) for path, channel in document["x-websockets"].items()]
    endpoints = [_endpoint(path, item["get"], schemas) for path, item in document["paths"].items()]
    return Template(_template()).substitute(
        title=document["info"]["title"],
        version=escape(document["info"]["version"]),
        description=_prose(document["info"]["description"]),
        example=escape(EXAMPLE.strip()),
        navigation=_navigation(document),
        channels=_join(channels),
        binary=_binary(document["x-binary-chunk"]),
        endpoints=_join(endpoints),
        structs=_join([_struct(name, schemas[name], "h3", example=False) for name in _shared(document)]),
        errors=_errors(document),
        close_codes=_close_codes(document["x-close-codes"]),
    )


def content_security_policy() -> str:
    """Allow the page its own style and nothing else."""
    style = _template().partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _template() -> str:
    return files(__package__).joinpath("docs.html").read_text("utf-8")


# Markup.


def _tag(name: str, *children: str, **attributes: str) -> Html:
    shown = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{shown}>{_join(children)}</{name}>")


def _join(children: Sequence[str]) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def _prose(text: str) -> Html:
    """Turn `code` into code, and the rest into text."""
    return _join([_tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))])


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Html:
    """Lay rows out; each cell carries its head for narrow screens, where a row is a card."""
    head = _tag("tr", *(_tag("th", it, scope="col") for it in heads))
    body = [_tag("tr", *(_cell(name, it) for name, it in zip(heads, row, strict=True))) for row in rows]
    return _tag("div", _tag("table", _tag("thead", head), _tag("tbody", *body)), class_="scroll")


def _cell(head: str, content: str) -> Html:
    return _tag("td", content, data_head=head) if content else _tag("td", class_="none")


def _code(value: object) -> Html:
    return _tag("pre", _tag("code", value if isinstance(value, str) else _pretty(value)))


def _pretty(value: object) -> str:
    """Write JSON over as few lines as are readable: what fits goes on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) <= 68 or not isinstance(value, dict | list) or not value:
        return flat
    if isinstance(value, list):
        inner, (first, last) = [_pretty(item) for item in value], "[]"
    else:
        inner = [f"{json.dumps(name)}: {_pretty(item)}" for name, item in value.items()]
        first, last = "{}"
    lines = ",\n".join(inner).replace("\n", "\n  ")
    return f"{first}\n  {lines}\n{last}"


def _anchor(text: str) -> str:
    return "-".join(part for part in split(r"\W+", text.lower()) if part)


# Schemas.


def _type(schema: Json) -> Html:
    """Say what a value may be: its type and its bounds."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix(SCHEMAS)
        return _tag("a", name, href=f"#{name}")
    if options := schema.get("anyOf"):
        optional = "default" in schema  # then null is as good as leaving it out
        return Html(" or ".join(_type(it) for it in options if not (optional and it.get("type") == "null")))
    if values := schema.get("enum"):
        return Html(" | ".join(_tag("code", json.dumps(value)) for value in values))
    if schema.get("type") == "array":
        bounds = _bounds(schema, "Items", " long,")
        return Html(f"list{bounds} of {_type(schema['items'])}")
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return Html(f"object of {_type(values)}") if isinstance(values, dict) else Html("object")
    return Html(escape(str(schema.get("type", "any"))) + _bounds(schema, "Length", " characters") + _range(schema))


def _bounds(schema: Json, what: str, unit: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low}{unit}"
    return f", {low} to {high}{unit}" if low else f", up to {high}{unit}"


def _range(schema: Json) -> str:
    low, high, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if isinstance(low, float) and isinstance(high, float):  # as wide as a float32: nothing to tell
        return ""
    bounds = [f"≥ {low:g}"] if low is not None else [f"&gt; {above:g}"] if above is not None else []
    bounds += ["≤ 2⁵³ − 1" if high == 2**53 - 1 else f"≤ {high:g}"] if high is not None else []
    return "".join(f", {bound}" for bound in bounds)


def _fields(schema: Json) -> Html:
    rows = [
        (_field(name, name in schema.get("required", ())), _type(property_), _prose(property_.get("description", "")))
        for name, property_ in schema["properties"].items()
        if name != "type"
    ]
    return _table(("field", "type", "meaning"), rows) if rows else Html()


def _field(name: str, required: bool) -> Html:
    return _join([_tag("code", name), *([_tag("span", "required", class_="required")] if required else [])])


def _struct(name: str, schema: Json, heading: str, *, example: bool = True) -> Html:
    return _tag(
        "section",
        _tag(heading, name),
        _tag("p", _prose(schema.get("description", ""))),
        *(_code(it) for it in schema.get("examples", []) if example),
        _fields(schema),
        id=name,
        class_="struct",
    )


def _named(schemas: list[Json]) -> list[str]:
    return [schema["$ref"].removeprefix(SCHEMAS) for schema in schemas]


def _shared(document: Json) -> list[str]:
    """Name the Structs shown neither as a WebSocket's message nor as the error object."""
    told = {"ErrorAnswer", "ErrorDetail"}
    for channel in document["x-websockets"].values():
        told.update(_named([channel["first"], *channel["receives"], *channel["sends"]]))
    return [name for name in document["components"]["schemas"] if name not in told]


# Sections.


def _navigation(document: Json) -> Html:
    paths = [*document["x-websockets"], *document["paths"]]
    return _join([_tag("li", _tag("a", _tag("code", path), href=f"#{_anchor(path)}")) for path in paths])


def _channel(path: str, channel: Json, schemas: Json, told: set[str]) -> Html:
    said = {"First message": [channel["first"]], "You send": channel["receives"], "You get": channel["sends"]}
    parts = [part for title, refs in said.items() for part in (_tag("h3", title), *_messages(refs, schemas, told))]
    codes = ", ".join(map(str, channel["closeCodes"]))
    return _tag(
        "section",
        _tag("h2", _tag("span", "ws", class_="verb"), _tag("code", path)),
        _tag("p", _prose(channel["summary"])),
        _tag("ul", *(_tag("li", _prose(rule)) for rule in (f"Key: {channel['key']}.", *channel["rules"]))),
        _parameters(channel["parameters"]),
        *parts,
        _tag("p", "Closes with ", codes, ": see ", _tag("a", "close codes", href="#close-codes"), "."),
        id=_anchor(path),
    )


def _messages(refs: list[Json], schemas: Json, told: set[str]) -> list[Html]:
    """Show the messages; those of an earlier channel by a link."""
    again = [_join([_type(ref), " (see above)"]) for ref in refs if ref["$ref"].removeprefix(SCHEMAS) in told]
    found = [_struct(name, schemas[name], "h4") for name in _named(refs) if name not in told]
    told.update(_named(refs))
    return found + [_tag("p", "And ", Html(", ".join(again)), ".")] * bool(again)


def _parameters(parameters: list[Json]) -> Html:
    rows = [
        (_field(it["name"], it.get("required", False)), _type(it["schema"]), _default(it), _prose(it["description"]))
        for it in parameters
    ]
    return _table(("parameter", "type", "default", "meaning"), rows) if rows else Html()


def _default(parameter: Json) -> Html:
    value = parameter["schema"].get("default")
    return Html() if value is None else _tag("code", str(value))


def _binary(layout: list[Json]) -> Html:
    rows = [(str(it["offset"]), _tag("code", it["type"]), _tag("code", it["field"]), it["meaning"]) for it in layout]
    return _table(("offset", "type", "field", "meaning"), rows)


def _endpoint(path: str, operation: Json, schemas: Json) -> Html:
    media, content = next(iter(operation["responses"]["200"]["content"].items()))
    names = _named([it for it in content["schema"].get("anyOf", [content["schema"]]) if "$ref" in it])
    statuses = [_join([_tag("code", code), " "]) for code in operation["responses"]]
    links = [Html(f"{' or ' if i else ''}{_type({'$ref': SCHEMAS + name})}") for i, name in enumerate(names)]
    example = [_code(schemas[name]["examples"][0]) for name in names[:1]]
    return _tag(
        "section",
        _tag("h3", _tag("span", "get", class_="verb"), _tag("code", path)),
        _tag("p", _prose(operation["summary"]), "" if operation.get("security") is None else " No key needed."),
        _parameters(operation["parameters"]),
        _tag("p", "Answers ", *links or [_tag("code", media)], _other_media(operation)),
        *example,
        _tag("p", "Statuses: ", *statuses),
        id=_anchor(path),
        class_="struct",
    )


def _other_media(operation: Json) -> Html:
    answer = operation["responses"]["200"]
    notes = [_join(["; ", _prose(it["schema"]["description"])]) for it in list(answer["content"].values())[1:]]
    headers = [_tag("code", name) for name in answer.get("headers", ())]
    listed = [Html(f"{', ' if i else '. Headers: '}{name}") for i, name in enumerate(headers)]
    return _join([*notes, *listed, "."])


def _errors(document: Json) -> Html:
    example = document["components"]["schemas"]["ErrorAnswer"]["examples"][0]
    statuses = _error_statuses(document)
    return _join(
        [
            _code(example),
            _table(("status", "meaning"), [(_tag("code", it), _prose(statuses[it])) for it in sorted(statuses)]),
            _tag("h3", "Error codes"),
            _table(
                ("code", "meaning"), [(_tag("code", it), meaning) for it, meaning in document["x-error-codes"].items()]
            ),
        ]
    )


def _error_statuses(document: Json) -> dict[str, str]:
    error = {"$ref": f"{SCHEMAS}ErrorAnswer"}
    return {
        status: answer["description"]
        for path in document["paths"].values()
        for status, answer in path["get"]["responses"].items()
        if next(iter(answer["content"].values()))["schema"] == error
    }


def _close_codes(codes: list[Json]) -> Html:
    rows = [(_tag("code", str(it["code"])), it["meaning"], "yes" if it["comeBack"] else "no") for it in codes]
    return _table(("code", "why", "come back?"), rows)
