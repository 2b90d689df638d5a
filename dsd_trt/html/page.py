"""The page: its head, its policy, and what all reports have."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files

from dsd_trt.html.escaped import escaped
from dsd_trt.html.tables import described

_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'"


def page(
    title: str,
    summary: str,
    body: Iterable[str],
    facts: Callable[[], Mapping[str, str]],
    tail: Iterable[str] | None = None,
) -> Iterator[str]:
    """A whole page in parts, in their order.

    Nothing is fetched: its policy lets its own style and script in by their hashes, and pictures
    that stand in the page.

    Args:
        title: title of the page, also its heading.
        summary: sentence below the heading.
        body: parts between the heading and the foot, read as they are asked for.
        facts: function that returns provenance, by name, for the foot; called after the body.
        tail: script and data of the body's explorer, which follow the foot, so that a browser shows
            the page before it has read them all; None for a page without an explorer.
    """
    icon = '<link rel="icon" href="data:,">'  # else browsers ask a server for one
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        f'content="{policy(scripted=tail is not None)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<meta name="color-scheme" content="light dark">\n{icon}\n'
        f"<title>{escaped(title)}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{escaped(title)}</h1>\n<p>{escaped(summary)}</p></header>\n<main>\n"
    )
    yield from body
    yield f"</main>\n<footer><h2>Provenance</h2>\n{described(facts())}</footer>\n"
    yield from tail or ()
    yield "</body>\n</html>\n"


def policy(*, scripted: bool) -> str:
    """The Content-Security-Policy of a page, with an explorer's script or without any."""
    scripts = f"; script-src '{_hash(script())}'" if scripted else ""
    return f"{_NOTHING}; img-src data:; style-src '{_hash(style())}'{scripts}"


@functools.cache
def style() -> str:
    """The style sheet of every page."""
    return _data("page.css")


@functools.cache
def script() -> str:
    """The script of pages with an explorer; it is the only one that a page may run."""
    return _data("explorer.js")


def _data(name: str) -> str:
    return (files("dsd_trt.html") / name).read_text("utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
