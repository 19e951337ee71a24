"""`/docs`, `/openapi.json` and `protocol.md`: complete, true, and safe to open."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import typing
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from msgspec import Struct
from starlette.applications import Starlette
from starlette.routing import Route

from support.clients import consumer, relay
from support.nodes import Node
from zander import errors
from zander.errors import BadMessage, CloseCode
from zander.routes import ROUTES, health, sessions, websocket
from zander.routes.docs import endpoints as docs
from zander.routes.docs import page, protocol, reference, text
from zander.routes.docs.examples import EXAMPLES, PROGRAM
from zander.routes.docs.openapi import BINARY_TYPES, document
from zander.routes.docs.reference import REFERENCE
from zander.routes.parameters import moment_us
from zander.streams import stream
from zander.wire import listener, messages
from zander.wire.bodies import Answer
from zander.wire.chunk import Chunk, Origin, RawIn, encode_binary

SOURCE = Path(errors.__file__).parent


def get(path: str) -> httpx.Response:
    """Ask the routes alone: neither page nor document needs a running service or a key."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=ROUTES))
        async with httpx.AsyncClient(transport=transport, base_url="http://zander") as client:
            return await client.get(path)

    return asyncio.run(answer())


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    """The document as it is served."""
    answer = get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def structs(module: Any) -> list[type[Struct]]:
    """Every public Struct that a module defines."""
    found = [it for it in vars(module).values() if isinstance(it, type) and issubclass(it, Struct)]
    return [it for it in found if it.__module__ == module.__name__ and not it.__name__.startswith("_")]


MODULES = (messages, health, sessions, reference)
KINDS = [kind for module in MODULES for kind in structs(module)]


def references(value: Any) -> set[str]:
    """Every `$ref` anywhere inside."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    here = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return here.union(*map(references, value.values()))


class TestDocument:
    def test_it_has_every_route(self, api: dict[str, Any]) -> None:
        described = [*api["x-websockets"], *api["paths"]]
        assert sorted(described) == sorted(route.path for route in ROUTES)  # type: ignore[attr-defined]

    def test_a_route_that_nobody_described_is_refused(self) -> None:
        with pytest.raises(KeyError, match="/new"):
            document([Route("/new", docs.page)], REFERENCE)

    @pytest.mark.parametrize("kind", KINDS, ids=lambda it: it.__name__)
    def test_it_has_every_struct_of_the_wire_and_of_the_endpoints(self, api: dict[str, Any], kind: type) -> None:
        assert kind.__name__ in api["components"]["schemas"]

    def test_every_message_is_said_to_be_sent_or_received_somewhere(self) -> None:
        said = {
            it for channel in reference.CHANNELS.values() for it in (channel.first, *channel.receives, *channel.sends)
        }
        tagged = {it for it in structs(messages) if it.__struct_config__.tag}
        assert tagged <= said

    def test_every_reference_leads_to_a_schema(self, api: dict[str, Any]) -> None:
        known = {f"#/components/schemas/{name}" for name in api["components"]["schemas"]}
        assert references(api) <= known

    def test_every_field_has_a_meaning_from_its_struct(self, api: dict[str, Any]) -> None:
        schemas = api["components"]["schemas"].items()
        fields = [(name, field, it) for name, schema in schemas for field, it in schema["properties"].items()]
        assert [f"{name}.{field}" for name, field, it in fields if field != "type" and not it.get("description")] == []

    def test_no_example_is_left_over_from_a_struct_that_is_gone(self, api: dict[str, Any]) -> None:
        assert set(EXAMPLES) - set(api["components"]["schemas"]) == set()

    def test_path_parameters_are_those_of_the_path(self, api: dict[str, Any]) -> None:
        for path, item in api["paths"].items():
            named = [it["name"] for it in item["get"]["parameters"] if it["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)

    def test_query_parameters_have_the_choices_of_the_code(self, api: dict[str, Any]) -> None:
        parameters = {it["name"]: it for it in api["paths"]["/buffer/{user_id}/range"]["get"]["parameters"]}
        assert parameters["sample_type"]["schema"] == {"enum": ["features", "prediction", "raw"], "default": "features"}
        assert parameters["format"]["schema"]["enum"] == ["json", "npy"]
        assert parameters["start"]["required"]
        assert parameters["end"]["required"]

    def test_every_endpoint_wants_a_key_but_health_and_the_reference(self, api: dict[str, Any]) -> None:
        open_paths = [path for path, item in api["paths"].items() if item["get"].get("security") == []]
        assert open_paths == ["/health", "/health/ready", "/docs", "/openapi.json"]
        assert all(
            ("401" in item["get"]["responses"]) == (path not in open_paths) for path, item in api["paths"].items()
        )

    @pytest.mark.parametrize(("keys", "security"), [(("e",), [{"bearer": []}, {"key": []}]), ((), [])])
    def test_it_asks_for_a_key_where_the_server_has_one(
        self, start_node: Callable[..., Node], keys: tuple[str, ...], security: list[dict[str, Any]]
    ) -> None:
        assert start_node(edge_api_key=keys).get("/openapi.json")[1]["security"] == security

    def test_every_close_code_has_a_reason(self, api: dict[str, Any]) -> None:
        listed = {it["code"]: it["comeBack"] for it in api["x-close-codes"]}
        assert sorted(listed) == sorted(CloseCode)
        assert [code for code, come_back in listed.items() if come_back] == [1012, 1013, 4408, 4413, 4429]

    def test_the_numbers_in_a_close_codes_meaning_are_those_of_the_code(self) -> None:
        numbers = {code: re.findall(r"\d+", code.meaning) for code in CloseCode}
        assert {code: found for code, found in numbers.items() if found} == {
            CloseCode.TOO_BIG: [f"{messages.MAX_MESSAGE_BYTES >> 20}"],
            CloseCode.INTERNAL_ERROR: [f"{2 * listener.PING_SECONDS}"],
            CloseCode.AUTH_TIMEOUT: [f"{websocket.AUTH_SECONDS:g}"],
            CloseCode.BAD_MESSAGES: [f"{websocket.MAX_BAD_MESSAGES}"],
        }

    def test_every_error_code_of_the_source_has_a_meaning(self, api: dict[str, Any]) -> None:
        text = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
        raised = set(re.findall(r'(?:BadMessage|Conflict|super\(\).__init__|tell_once)\(\s*"([a-z_]+)"', text))
        assert raised == set(api["x-error-codes"])

    def test_it_is_built_once(self) -> None:
        app = Starlette(routes=ROUTES)
        assert docs.api(app) is docs.api(app)


class TestTruth:
    """What the reference says by hand, held against what the code does."""

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_an_example_is_what_its_struct_reads(self, name: str) -> None:
        kinds: list[type[Any]] = [*KINDS, stream.StreamStats]
        kind = {it.__name__: it for it in kinds}[name]
        msgspec.json.decode(json.dumps(EXAMPLES[name]), type=kind)
        assert set(EXAMPLES[name]) - {"type"} <= set(kind.__struct_encode_fields__)

    def test_raw_leaves_as_raw_sample_and_raw_chunk_say(self) -> None:
        samples = np.array([[1, np.nan], [2, 3]], np.float32)
        chunk = Chunk(Origin("u", "s", 0.0), 7, np.array([10, 20], np.int64), samples)
        sample = msgspec.json.decode(chunk.json_frames[0], type=messages.RawSample)
        assert sample == messages.RawSample("u", "s", 7, 1e-05, [1.0, None])
        assert set(json.loads(chunk.json_frames[0])) == {"type", *messages.RawSample.__struct_fields__}
        assert set(json.loads(chunk.chunk_frame)) == {"type", *messages.RawChunk.__struct_fields__}

    async def test_features_and_predictions_arrive_as_their_events_say(self, node: Node, user: str) -> None:
        async with relay(node.ws, user) as sender, consumer(node.ws, user) as reader, consumer(node.ws, user) as other:
            await sender.send(EXAMPLES["Features"])
            await other.send(EXAMPLES["Prediction"])
            features, prediction = await reader.until("features"), await reader.until("prediction")
        assert set(features) == set(EXAMPLES["FeaturesEvent"])
        assert set(prediction) == set(EXAMPLES["PredictionEvent"])
        msgspec.convert(features, messages.FeaturesEvent)
        msgspec.convert(prediction, messages.PredictionEvent)

    def test_the_layout_is_where_the_encoder_writes(self, api: dict[str, Any]) -> None:
        data = encode_binary(RawIn(5, 1_000_000, np.arange(6, dtype=np.float32).reshape(3, 2)))
        *header, values = api["x-binary-chunk"]
        read = {it["field"]: struct.unpack_from("<" + BINARY_TYPES[it["type"]], data, it["offset"])[0] for it in header}
        assert read == {
            **{"version": 1, "kind": 1, "dtype": 1, "flags": 0},
            **{"n_channels": 2, "n_samples": 3, "position": 5, "time_us": 1_000_000},
        }
        assert np.frombuffer(data, "<f4", offset=values["offset"]).tolist() == [0, 1, 2, 3, 4, 5]

    def test_npy_has_the_headers_that_are_listed(self) -> None:
        rooms = ("wire/bodies.py", "streams/query.py", "routes/history.py")
        common, of_buffer, of_history = (set(re.findall(r'"(X-[\w-]+)"', (SOURCE / it).read_text())) for it in rooms)
        assert common | of_buffer == set(reference.NPY_HEADERS)
        assert common | of_history == set(reference.HISTORY_HEADERS)
        assert typing.get_type_hints(Answer)["headers"] == dict[str, str]

    def test_the_python_example_runs_as_it_is_printed(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        exec(PROGRAM.replace("ws://localhost:8000", node.ws), {})
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith('relay:    {"type":"auth_ok"')
        assert len([line for line in lines if '"type":"raw"' in line]) == 128


class Page(HTMLParser):
    """What is on a page: its links, its ids, its tags, and whether they close."""

    VOID: typing.ClassVar = {"meta", "path"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes.update(given)
        self.links += [str(given[name]) for name in ("href", "src") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> Page:
    """The page, parsed."""
    answer = get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


class TestPage:
    def test_its_tags_close_and_its_ids_are_unique(self, html: Page) -> None:
        assert html.open == []
        assert sorted(set(html.ids)) == sorted(html.ids)

    def test_it_loads_nothing_and_runs_nothing(self, html: Page) -> None:
        assert not html.tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
        assert not [name for name in html.attributes if name.startswith("on") or name == "style"]
        assert not re.search(r"@import|url\(|@font-face", get("/docs").text)

    def test_its_links_lead_to_itself_or_to_the_document(self, html: Page) -> None:
        anchors = {f"#{it}" for it in html.ids}
        assert set(html.links) - anchors == {"/openapi.json"}

    def test_its_policy_allows_its_own_style_and_nothing_else(self) -> None:
        policy = get("/docs").headers["content-security-policy"]
        directives = dict(it.split(" ", 1) for it in policy.split("; "))
        assert directives.pop("style-src").startswith("'sha256-")
        assert set(directives) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
        assert set(directives.values()) == {"'none'"}

    def test_it_names_every_path_message_field_and_code(self, html: Page, api: dict[str, Any]) -> None:
        names = {*api["paths"], *api["x-websockets"], *api["components"]["schemas"], *api["x-error-codes"]}
        names |= {field for schema in api["components"]["schemas"].values() for field in schema["properties"]}
        names |= {str(it["code"]) for it in api["x-close-codes"]} | {it["field"] for it in api["x-binary-chunk"]}
        assert {name for name in names if name not in html.text} <= {"ErrorAnswer", "ErrorDetail"}

    def test_it_follows_the_light_and_the_width_of_its_reader(self) -> None:
        html = get("/docs").text
        assert "prefers-color-scheme: dark" in html
        assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
        assert "@media (max-width:" in html

    def test_text_that_looks_like_markup_stays_text(self) -> None:
        evil = "<script>alert('1')</script> & `<b>` [<i>](#<u>) [a](javascript:b) [c](#d\"e)"
        changed = REFERENCE._replace(
            description=evil,
            examples={**REFERENCE.examples, "Raw": {"type": evil}},
            error_codes={evil: evil},
            terms={evil: evil},
            rules={evil: (evil,)},
        )
        described = document(ROUTES, changed)
        for schema in described["components"]["schemas"].values():
            for property_ in schema["properties"].values():
                property_["description"] = evil
        for code in described["x-close-codes"]:
            code["meaning"] = evil
        html = page.render(described)
        assert "&lt;script&gt;" in html
        assert not re.search(r"<script|<b>|<i>|<u>|href=.javascript|href=.#d", html)


class TestProtocol:
    def test_the_file_is_what_the_structs_say(self) -> None:
        written = (Path(protocol.__file__).parent / "protocol.md").read_text("utf-8")
        assert written == protocol.render(), "protocol.md is not what the Structs say: run `make protocol`"

    def test_its_links_lead_to_its_headings(self) -> None:
        written = protocol.render()
        headings = re.findall(r"^#+ (.+)$", written, re.MULTILINE)
        anchors = [text.anchor(heading) for heading in headings]
        assert set(re.findall(r"\]\(#([^)]*)\)", written)) <= set(anchors)
        assert sorted(anchors) == sorted(set(anchors))

    def test_its_tables_have_rows_as_wide_as_their_heads(self) -> None:
        for table in re.findall(r"(?:^\|.*\n)+", protocol.render(), re.MULTILINE):
            assert len({row.count("|") for row in table.splitlines()}) == 1, table

    def test_it_names_every_path_message_field_and_code(self, api: dict[str, Any]) -> None:
        written = protocol.render()
        names = {*api["paths"], *api["x-websockets"], *api["components"]["schemas"], *api["x-error-codes"]}
        names |= {field for schema in api["components"]["schemas"].values() for field in schema["properties"]}
        names |= {str(it["code"]) for it in api["x-close-codes"]} | {it["field"] for it in api["x-binary-chunk"]}
        assert {name for name in names if name not in written} <= {"ErrorAnswer", "ErrorDetail"}


class TestLimits:
    def test_a_server_says_how_much_of_its_buffers_can_be_asked_for(self, start_node: Callable[..., Node]) -> None:
        api = start_node(buffer_samples=77).get("/openapi.json")[1]
        parameters = {
            it["name"]: it["schema"] for it in api["paths"]["/buffer/{user_id}/last/{n}"]["get"]["parameters"]
        }
        assert (parameters["n"]["minimum"], parameters["n"]["maximum"]) == (1, 77)
        of_consumer = {it["name"]: it["schema"] for it in api["x-websockets"]["/subscribe/{user_id}"]["parameters"]}
        assert of_consumer["last"]["maximum"] == 77

    @pytest.mark.parametrize(
        "moment",
        [
            "0",
            "-5",
            "1764000000.5",
            "2025-11-24",
            "2025-02-28T23:59",
            "2025-12-31T23:59:59.5+01:00",
            "2025-11-24T00:00:00Z",
        ],
    )
    def test_a_time_that_the_document_allows_is_taken(self, api: dict[str, Any], moment: str) -> None:
        (schema,) = {json.dumps(it["schema"]) for it in times(api)}
        assert re.search(json.loads(schema)["pattern"], moment)
        moment_us({"start": moment}, "start")

    @pytest.mark.parametrize("moment", ["", "then", "2025-02-30", "2025-13-01", "nan", "1e300", "2025-11-24T24:00"])
    def test_a_time_that_is_none_is_neither_allowed_nor_taken(self, api: dict[str, Any], moment: str) -> None:
        assert not any(re.search(it["schema"]["pattern"], moment) for it in times(api))
        with pytest.raises(BadMessage):
            moment_us({"start": moment}, "start")


def times(api: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters that are times."""
    found = [it for path in api["paths"].values() for it in path["get"]["parameters"] if it["name"] in ("start", "end")]
    assert len(found) == 4
    return found
