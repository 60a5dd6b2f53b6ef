"""What the server answers beside Streamlit's own pages."""

from starlette.applications import Starlette
from starlette.requests import Request

from app.addresses import to_first_page


def answer(query: bytes) -> str:
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "server": ("127.0.0.1", 8501),
        "path": "/runs",
        "query_string": query,
        "headers": [],
        "app": Starlette(),
    }
    return to_first_page(Request(scope)).headers["location"]


def test_the_first_pages_name_leads_to_the_root_with_its_selection():
    assert answer(b"run=20260101-000000-demo-0000") == "/?run=20260101-000000-demo-0000"


def test_without_a_selection_it_leads_to_the_bare_root():
    assert answer(b"") == "/"
