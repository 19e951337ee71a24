"""Text of the API reference for people, from the OpenAPI document: the part that the page and `protocol.md` share.

Sentences and types are a small Markdown, `code` and [links](#to-a-heading) only. `protocol.md` keeps it, the page turns
it into HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zander.routes.docs.openapi import Json

SCHEMAS = "#/components/schemas/"
TEMPLATES = Path(__file__).parent
LINE_CHARACTERS = 68  # of an example: what is longer goes over several lines


class Messages(NamedTuple):
    """Messages of one direction, by name of the Struct; `known` are those that an earlier endpoint has shown."""

    title: str
    new: list[str]
    known: list[str]


def environment(*, autoescape: bool) -> Environment:
    """Make what renders the templates of this folder, with the functions of this module as filters."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "anchor": anchor,
        "answer_names": answer_names,
        "answer_type": answer_type,
        "error_statuses": error_statuses,
        "fields": fields,
        "messages": messages,
        "objects": objects,
        "pretty": pretty,
        "type_text": type_text,
    }
    return made


def anchor(text: str) -> str:
    """Make the id of a heading, as GitHub does for Markdown."""
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")


def pretty(value: object) -> str:
    """Write JSON over as few lines as are readable: what fits goes on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) <= LINE_CHARACTERS or not isinstance(value, dict | list) or not value:
        return flat
    if isinstance(value, list):
        inner, (first, last) = [pretty(item) for item in value], "[]"
    else:
        inner = [f"{json.dumps(name, ensure_ascii=False)}: {pretty(item)}" for name, item in value.items()]
        first, last = "{}"
    lines = ",\n".join(inner).replace("\n", "\n  ")
    return f"{first}\n  {lines}\n{last}"


# Schemas.


def type_text(schema: Json) -> str:
    """Describe a value: its type and its limits."""
    if reference := schema.get("$ref"):
        name = _name(reference)
        return f"[{name}](#{anchor(name)})"
    if options := schema.get("anyOf"):
        optional = "default" in schema  # then null is as good as leaving it out
        return _any([type_text(it) for it in options if not (optional and it.get("type") == "null")])
    if values := schema.get("enum"):
        return _any([f"`{json.dumps(value)}`" for value in values])
    if schema.get("type") == "array":
        items = type_text(schema["items"])
        return f"list{_bounds(schema, 'Items', ' long,')} of {re.sub('^list of', 'lists of', items)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {type_text(values)}" if isinstance(values, dict) else "object"
    form = {"uuid": "UUID"}.get(schema.get("format", ""), schema.get("type", "any"))
    return f"{form}{_bounds(schema, 'Length', ' characters')}{_range(schema)}"


def fields(schema: Json) -> dict[str, Json]:
    """Return the fields of a Struct that have something to tell: all but its `type`."""
    return {name: property_ for name, property_ in schema["properties"].items() if name != "type"}


def _any(options: Sequence[str]) -> str:
    *before, last = options
    return f"{', '.join(before)} or {last}" if before else last


def _bounds(schema: Json, what: str, unit: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low}{unit}"
    return f", {low} to {high}{unit}" if low else f", up to {high}{unit}"


def _range(schema: Json) -> str:
    low, high, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if isinstance(low, float) and low < -1e38:  # as wide as a float32: nothing to tell
        return ""
    bounds = [f"≥ {low:g}"] if low is not None else [f"> {above:g}"] if above is not None else []
    bounds += ["≤ 2⁵³\u00a0−\u00a01" if high == 2**53 - 1 else f"≤ {high:g}"] if high is not None else []
    return "".join(f", {bound}" for bound in bounds)


def _name(reference: str) -> str:
    return reference.removeprefix(SCHEMAS)


def _names(schemas: Sequence[Json]) -> list[str]:
    return [_name(schema["$ref"]) for schema in schemas]


# Sections.


def messages(document: Json) -> dict[str, list[Messages]]:
    """Return the messages of each WebSocket endpoint, in the order of reading; each is new once."""
    shown: set[str] = set()
    found: dict[str, list[Messages]] = {}
    for path, channel in document["x-websockets"].items():
        found[path] = []
        said = {"First message": [channel["first"]], "You send": channel["receives"], "You get": channel["sends"]}
        for title, schemas in said.items():
            names = _names(schemas)
            new, known = [it for it in names if it not in shown], [it for it in names if it in shown]
            found[path].append(Messages(title, new, known))
            shown.update(names)
    return found


def objects(document: Json) -> list[str]:
    """Name the Structs that are no message of a WebSocket; the object of an error has a place of its own."""
    told = {"ErrorAnswer", "ErrorDetail"}
    for parts in messages(document).values():
        told.update(name for part in parts for name in (*part.new, *part.known))
    return [name for name in document["components"]["schemas"] if name not in told]


def answer_type(operation: Json) -> str:
    """Describe the answer of an endpoint: a Struct, or a media type."""
    content = operation["responses"]["200"]["content"]
    media, answer = next(iter(content.items()))
    schema = answer["schema"]
    return type_text(schema) if "$ref" in schema or "anyOf" in schema else f"`{media}`"


def answer_names(operation: Json) -> list[str]:
    """Name the Structs that an endpoint may answer with."""
    schema = next(iter(operation["responses"]["200"]["content"].values()))["schema"]
    return _names([it for it in schema.get("anyOf", [schema]) if "$ref" in it])


def error_statuses(document: Json) -> dict[str, str]:
    """Return the meaning of each status that comes with the object of an error."""
    error = {"$ref": f"{SCHEMAS}ErrorAnswer"}
    return {
        status: answer["description"]
        for path in document["paths"].values()
        for status, answer in sorted(path["get"]["responses"].items())
        if next(iter(answer["content"].values()))["schema"] == error
    }
