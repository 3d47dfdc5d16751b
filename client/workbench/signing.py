"""Settings of signing in with the hospital's own service: the table ``[workbench.oidc]`` of site.toml."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_TABLE = ConfigDict(
    frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"), validate_by_name=True
)


def _encrypted(address: str) -> str:
    """An address that is asked by TLS, or one of this machine."""
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError("another machine is reached by https only")
    return address


_Address = Annotated[str, Field(pattern=r"^https?://[^\s?#@]+$", max_length=512), AfterValidator(_encrypted)]
_Group = Annotated[str, Field(min_length=1, max_length=256)]


class RolesSettings(BaseModel):
    """Which groups of the service have which role here. Who is in several has the highest.

    Parameters
    ----------
    annotator, reviewer, admin
        Groups by name, as the service writes them.
    """

    model_config = _TABLE

    annotator: tuple[_Group, ...] = ()
    reviewer: tuple[_Group, ...] = ()
    admin: tuple[_Group, ...] = ()


class OidcSettings(BaseModel):
    """How the service is reached, and what it says of people. Its secret lies in ``keys/oidc-secret``.

    Parameters
    ----------
    issuer
        As the service calls itself. Nothing but this host is asked.
    client_id
        As the service calls the workbench.
    url
        As people reach the workbench; ``/oidc/callback`` below it is to be registered with the service.
    title
        How the service is called on the page.
    scopes
        What is asked for besides ``openid``.
    name_claim
        Gives the name of the account: what stands before an ``@``, in lower case.
    roles_claim
        Gives the groups; a dot leads into an object, as in ``realm_access.roles``.
    roles
        Which groups have which role. Who is in none of them does not get in.
    ca
        PEM file of the authority that the service's certificate comes from, relative to the home; empty for those that
        the system trusts.
    passwords
        Whether local accounts may sign in by password as well.
    """

    model_config = _TABLE

    issuer: _Address
    client_id: Annotated[str, Field(min_length=1, max_length=256)]
    url: _Address
    title: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f<>]{1,64}$")] = "hospital account"
    scopes: tuple[Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{1,64}$")], ...] = ("profile",)
    name_claim: Annotated[str, Field(min_length=1, max_length=128)] = "preferred_username"
    roles_claim: Annotated[str, Field(min_length=1, max_length=128)] = "groups"
    roles: RolesSettings
    ca: str = ""
    passwords: bool = True
