"""`zander watch`: shows what a user's stream is doing, on a screen, or in a line a second where there is none."""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

from zander.client import ConnectionLost, Consumer
from zander.terminal.picture import picture
from zander.terminal.screen import Screen, clean
from zander.terminal.view import View, report, summary

REDRAW_S = 0.1
REPORT_S = 1.0


class WatchOptions(NamedTuple):
    """What the command line says; `types` empty is all of them, `seconds` None is until it is interrupted."""

    url: str
    user_id: str
    key: str | None
    types: tuple[str, ...]
    last: int
    seconds: float | None


async def watch(options: WatchOptions) -> None:
    """Show a user's stream; ConnectionLost when there is none after `seconds`, Rejected when it is refused."""
    view = View(options.user_id, has_history=options.last > 0)
    show = _on_screen if sys.stdout.isatty() else _in_lines
    shower = asyncio.create_task(show(view))
    try:
        async with asyncio.timeout(options.seconds):
            await _follow(view, options)
    except TimeoutError:
        if view.link != "connected":
            raise ConnectionLost(view.link) from None
    finally:
        shower.cancel()
        await asyncio.wait({shower})  # the screen is left before the last line
        print(clean(summary(view)), flush=True)


async def _follow(view: View, options: WatchOptions) -> None:
    consumer = Consumer(
        options.url,
        options.user_id,
        options.key,
        types=(*options.types, "status") if options.types else None,  # it also shows that we are connected
        last=options.last,
        on_lost=lambda error, pause_s: view.lose(str(error), pause_s),
    )
    async with consumer:
        async for event in consumer:
            view.take(event)


async def _on_screen(view: View) -> None:
    with Screen() as screen:
        while True:
            columns, lines = screen.size
            screen.draw(picture(view, columns, lines))
            await asyncio.sleep(REDRAW_S)


async def _in_lines(view: View) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        print(clean(report(view)), flush=True)
