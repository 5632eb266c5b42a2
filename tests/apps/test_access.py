"""Who gets in: the local user at the server's own machine, elsewhere whom a login or a proxy names, with the roles granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import streamlit as st
from streamlit.runtime.context import StreamlitHeaders
from streamlit.testing.v1 import AppTest

from apps.films.worklist import Worklist
from tests.apps.conftest import SCRIPT, App, Listen
from tests.apps.rows import lists
from tests.apps.test_cxr_review import click, finish, texts


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the requests that follow carry these headers; AppTest has none of its own."""

    def set_headers(**headers: str) -> None:
        sent = StreamlitHeaders([(name.replace("_", "-"), value) for name, value in headers.items()])
        monkeypatch.setattr(type(st.context), "headers", property(lambda context: sent))

    return set_headers


def opened(user: dict[str, Any] | None = None, secrets: bool = False, **params: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=60)
    for key, value in params.items():
        page.query_params[key] = value
    if user is not None:
        page.user = user
    if secrets:
        page.secrets["auth"] = {"redirect_uri": "x", "cookie_secret": "y", "client_id": "z"}
    return page.run()


def problem(page: AppTest) -> str:
    assert not page.exception
    return " ".join(e.value.replace("\\", "") for e in page.error)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1"])
def test_the_local_user_may_do_all(app: App, listen_at: Listen, address: str) -> None:
    listen_at(address)
    app.arguments()
    page = opened()
    assert not page.error and "Reviewer: ann (adjudicator, admin, reader)" in texts(page)


@pytest.mark.parametrize("address", ["", "0.0.0.0", "192.0.2.1", "review.example.org"])
def test_nobody_gets_in_from_elsewhere_without_a_name(app: App, listen_at: Listen, address: str) -> None:
    listen_at(address)
    app.arguments()
    page = opened()
    assert "nothing says who its users are" in problem(page) and "--user_header" in problem(page)
    assert not lists(page) and not page.sidebar.button


@pytest.mark.parametrize("header", ["X_Forwarded_For", "x_real_ip", "Forwarded", "Via"])
def test_a_proxy_before_a_local_server_is_noticed(app: App, send: Callable[..., None], header: str) -> None:
    app.arguments()
    send(**{header: "203.0.113.7"})
    assert "came through a proxy" in problem(opened())


def test_the_proxys_header_names_the_reviewer(app: App, listen_at: Listen, send: Callable[..., None]) -> None:
    listen_at("0.0.0.0")
    app.arguments("--user_header", "X-Forwarded-User")
    for headers in ({}, {"X_Forwarded_User": "  "}):
        send(**headers)
        assert "carries no X-Forwarded-User" in problem(opened())
    send(x_forwarded_user="bob@example.org")
    page = opened()
    assert not page.error and "hold no role yet" in texts(page) and not lists(page)
    app.store.grant("bob@example.org", "reader", by="root")
    page = opened()
    assert lists(page) and "Reviewer: bob@example.org (reader)" in texts(page)
    assert not [t for t in page.toggle if t.key == "adjudicate"]
    assert "ann" not in texts(page).replace("scanned", "")  # the local name plays no part


def test_a_login_names_the_reviewer(app: App, listen_at: Listen) -> None:
    listen_at("0.0.0.0")
    app.arguments("--admin", "eve@example.org")
    page = opened(secrets=True, user={"is_logged_in": False})
    assert [b.label for b in page.button] == ["Log in"] and not lists(page)
    page = opened(secrets=True, user={"is_logged_in": True, "email": "eve@example.org", "email_verified": False})
    assert "not verified" in problem(page)
    page = opened(secrets=True, user={"is_logged_in": True, "email": "eve@example.org", "email_verified": True})
    assert "Reviewer: eve@example.org (adjudicator, admin, reader)" in texts(page)
    assert [b for b in page.button if b.key == "logout"]


def test_decisions_carry_the_name_of_the_login(
    app: App, listen_at: Listen, send: Callable[..., None], worklist: Worklist
) -> None:
    listen_at("0.0.0.0")
    app.arguments("--user_header", "X-User")
    send(X_User="bob")
    app.store.grant("bob", "reader", by="root")
    page = opened(item=worklist.table["item"].iloc[0])
    finish(click(page, "say-0"))
    assert [d.reviewer for d in app.store.decisions()] == ["bob"]


def test_a_role_taken_back_in_the_meantime_saves_nothing(
    app: App, listen_at: Listen, send: Callable[..., None], worklist: Worklist
) -> None:
    listen_at("0.0.0.0")
    app.arguments("--user_header", "X-User")
    send(X_User="bob")
    app.store.grant("bob", "reader", by="root")
    page = click(opened(item=worklist.table["item"].iloc[0]), "say-0")
    app.store.grant("bob", "reader", by="root", active=False)
    assert "hold no role yet" in texts(click(page, "finish"))
    assert app.store.count() == 0


def test_what_is_for_admins_is_for_admins(app: App, listen_at: Listen, send: Callable[..., None]) -> None:
    listen_at("0.0.0.0")
    app.arguments("--user_header", "X-User")
    app.store.grant("bob", "reader", by="root")
    app.store.grant("cleo", "admin", by="root")
    send(X_User="bob")
    as_reader = opened(show="team")
    assert "readers stay independent" in texts(as_reader)
    assert not {"verify", "assign-open"} & {b.key for b in as_reader.button} and not as_reader.download_button
    send(X_User="cleo")
    assert "verify" in {b.key for b in opened(show="team").button}
