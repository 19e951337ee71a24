"""`zander watch`: a user's stream on the screen, or a line a second where the output is no terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

from zander.client import ConnectionLost, Consumer
from zander.terminal.ansi import Screen, clean
from zander.terminal.dashboard import View, render, report, summary

REDRAW_S = 0.1
REPORT_S = 1.0


class WatchOptions(NamedTuple):
    """The options of the command line; no `types` is all of them, `seconds` None is until it is interrupted."""

    url: str
    user_id: str
    key: str | None
    types: tuple[str, ...]
    last: int
    seconds: float | None


async def watch(options: WatchOptions) -> None:
    """Show a user's stream; ConnectionLost when there is no connection after `seconds`, Rejected when it is refused."""
    view = View(options.user_id, has_history=options.last > 0)
    show = _draw if sys.stdout.isatty() else _print_lines
    display = asyncio.create_task(show(view))
    try:
        async with asyncio.timeout(options.seconds):
            await _follow(view, options)
    except TimeoutError:
        if view.connection != "connected":
            raise ConnectionLost(view.connection) from None
    finally:
        display.cancel()
        await asyncio.wait({display})  # the screen is left before the last line
        print(clean(summary(view)), flush=True)


async def _follow(view: View, options: WatchOptions) -> None:
    consumer = Consumer(
        options.url,
        options.user_id,
        options.key,
        types=(*options.types, "status") if options.types else None,  # it also shows that we are connected
        last=options.last,
        on_lost=lambda error, pause_s: view.note_lost(str(error), pause_s),
    )
    async with consumer:
        async for event in consumer:
            view.add(event)


async def _draw(view: View) -> None:
    with Screen() as screen:
        while True:
            columns, lines = screen.size
            screen.draw(render(view, columns, lines))
            await asyncio.sleep(REDRAW_S)


async def _print_lines(view: View) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        print(clean(report(view)), flush=True)
