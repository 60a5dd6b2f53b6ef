"""Addresses beside Streamlit's own: the first page answers to its name as well as to the root."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.navigation import PAGES


def to_first_page(request: Request) -> Response:
    """Send the first page's name to the root, where Streamlit serves its default page."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/{query}")


def route() -> Route:
    """Return the route of the first page's name."""
    return Route(f"/{PAGES[0].key}", to_first_page)
