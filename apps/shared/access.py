"""Who is at the other end, and what they may do.

On the server's own machine (``server.address`` localhost, and no proxy in between) the reviewer is the local user, with all
roles. At any other address a reviewer is whom Streamlit's login (OpenID Connect: ``[auth]`` in ``.streamlit/secrets.toml``) or
a reverse proxy's header (``--user_header``) names, with the roles that an admin granted in the store.
"""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from vitdomains.core.errors import ConfigError
from vitdomains.core.review.store import ReviewStore

LOCAL = ("localhost", "127.0.0.1", "::1")
ALL_ROLES = frozenset({"reader", "adjudicator", "admin"})
_PROXY_HEADERS = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "Via")


@dataclass(frozen=True)
class Identity:
    """What an app is told at its start about its reviewers.

    Attributes:
        reviewer: Name of the local reviewer; empty: the system's user.
        user_header: Header in which a reverse proxy names the user; it must be the proxy alone that can set it.
        admins: Names with all roles whatever the store says: who starts a new store has to begin somewhere.
    """

    reviewer: str = ""
    user_header: str = ""
    admins: tuple[str, ...] = ()

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The words of an app's command line that make an ``Identity``."""
        parser.add_argument("--reviewer", default="", help="name of the local reviewer (default: of the system's user)")
        parser.add_argument(
            "--user_header", default="", help="header in which a reverse proxy, and nobody else, names the user"
        )
        parser.add_argument(
            "--admin", action="append", default=[], help="a reviewer who may grant roles; may be repeated"
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Identity:
        """From the parsed command line."""
        return cls(args.reviewer, args.user_header, tuple(args.admin))


@dataclass(frozen=True)
class Reviewer:
    """Who reviews, with which roles; ``local``: at the server's own machine, without a login."""

    name: str
    roles: frozenset[str]
    local: bool = False


def identify(store: ReviewStore, how: Identity, title: str = "Film review") -> Reviewer:
    """The reviewer of this session; asks for the login where there is one, and ends the run until it is done.

    Args:
        store: Holds the roles that were granted.
        how: The options of the app that speak of reviewers.
        title: Of the page on which the login stands.

    Raises:
        ConfigError: Others than the local user can reach the app, and nothing says who they are.
    """
    if how.user_header:
        name = (st.context.headers.get(how.user_header) or "").strip()
        if not name:
            raise ConfigError(
                f"The request carries no {how.user_header} header.",
                hint="Open the app through the reverse proxy, and let the proxy set this header for every request.",
            )
        return _with_roles(store, name, how.admins)
    if login_configured():
        if not st.user.is_logged_in:
            st.title(title)
            st.button("Log in", on_click=st.login, type="primary", shortcut="Enter")
            st.stop()
        claims = st.user.to_dict()
        if claims.get("email") and claims.get("email_verified") is False:
            raise ConfigError(
                "The login's e-mail address is not verified.", hint="Verify it with the identity provider."
            )
        name = str(claims.get("email") or claims.get("sub") or "")
        if not name:
            raise ConfigError(
                "The login names neither an e-mail address nor a subject.", hint="Ask for the scope email."
            )
        return _with_roles(store, name, how.admins)
    address = str(st.get_option("server.address") or "")
    if address not in LOCAL:
        raise ConfigError(
            f"The app listens on {address or 'all addresses'}, and nothing says who its users are.",
            hint="Start it with --server.address localhost, or set up a login ([auth] in .streamlit/secrets.toml), or put a "
            "reverse proxy with authentication before it and start it with --user_header NAME.",
        )
    if any(st.context.headers.get(header) for header in _PROXY_HEADERS):
        raise ConfigError(
            "The request came through a proxy, and nothing says who its user is.",
            hint="Start the app with --user_header NAME, and let the proxy set that header for every request.",
        )
    return Reviewer(how.reviewer or getpass.getuser(), ALL_ROLES, local=True)


def login_configured() -> bool:
    """Whether Streamlit's secrets hold an ``[auth]`` section."""
    try:
        return "auth" in st.secrets
    except FileNotFoundError:  # there are no secrets at all
        return False


def _with_roles(store: ReviewStore, name: str, admins: Sequence[str]) -> Reviewer:
    roles = ALL_ROLES if name in admins else store.roles(name).get(name, frozenset())
    return Reviewer(name, frozenset(roles))


def require(reviewer: Reviewer, role: str) -> None:
    """Raise where the reviewer does not hold the role: what a page hides, its actions refuse as well."""
    if role not in reviewer.roles:
        raise ConfigError(f"{reviewer.name} is no {role}.", hint="Ask an admin to grant the role (page Team).")
