"""Signing in, and accounts over HTTP: one's own password for everybody, all accounts for an administrator.

What is answered never holds a hash. A password is answered once, to the administrator who had it made; it is good for
choosing another.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from wardround.client.workbench.access import Access
from wardround.client.workbench.accounts import LONGEST, Accounts, AccountView, Person
from wardround.client.workbench.errors import ApiError
from wardround.client.workbench.patience import TooManyTries
from wardround.client.workbench.roster import Role
from wardround.errors import AuthRefused

PREFIX = "/api/v1"

_Name = Annotated[str, Field(max_length=64)]
_Password = Annotated[str, Field(max_length=2 * LONGEST)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SignIn(_Body):
    """Name and password of an account."""

    name: _Name
    password: _Password


class NewPassword(_Body):
    """The password that one has, and the one that one wants."""

    old: _Password
    new: _Password


class Invited(_Body):
    """Who gets an account."""

    name: _Name
    role: Role = "annotator"


class NewRole(_Body):
    """What an account may do from now on."""

    role: Role


class Disabled(_Body):
    """Whether an account may not sign in."""

    disabled: bool


def make_router(access: Access, accounts: Accounts) -> APIRouter:
    """All routes.

    Parameters
    ----------
    access
        Who may come in.
    accounts
        Who there is.
    """
    router = APIRouter(prefix=PREFIX, tags=["People"])
    Anyone = Annotated[Person, Depends(access.require(one_time=True))]
    Admin = Annotated[Person, Depends(access.require("admin"))]

    @router.post("/login", summary="Sign in: a cookie for browsers")
    async def login(request: Request, given: SignIn) -> Response:
        response = Response()
        person = await access.in_turn(access.sign_in, request, response, given.name, given.password)
        return with_cookies(JSONResponse(as_json(person)), response)

    @router.post("/logout", summary="Sign out")
    def logout(request: Request, person: Anyone) -> Response:
        response = Response(status_code=204)
        access.sign_out(request, response)
        return response

    @router.get("/me", summary="Who is signed in")
    def me(person: Anyone) -> dict[str, Any]:
        return as_json(person)

    @router.post("/password", summary="Choose another password; your other sessions end", status_code=204)
    async def change(request: Request, person: Anyone, given: NewPassword) -> Response:
        try:
            await access.in_turn(access.change_password, request, person, given.old, given.new)
        except TooManyTries:
            raise
        except AuthRefused as error:  # Whoever asks is signed in.
            raise ApiError(403, "wrong-password", "the old password is wrong", "", "try again") from error
        return Response(status_code=204)

    @router.get("/accounts", summary="All accounts")
    def everybody(person: Admin) -> dict[str, Any]:
        return {"accounts": [asdict(one) for one in accounts.views()]}

    @router.post("/accounts", summary="Make an account with a one-time password", status_code=201)
    async def invite(person: Admin, given: Invited) -> dict[str, Any]:
        password = await access.in_turn(accounts.invite, given.name, given.role)
        return asdict(_known(accounts, given.name)) | {"password": password}

    def other(name: str, person: Admin) -> AccountView:
        """The account that a path names; nobody shuts the door behind themselves."""
        if name == person.name:
            raise ApiError(409, "own-account", "this is your own account", "", "ask another administrator")
        return _known(accounts, name)

    Other = Annotated[AccountView, Depends(other)]

    @router.post("/accounts/{name}/role", summary="Give an account another role; its sessions end")
    def role(account: Other, given: NewRole) -> dict[str, Any]:
        _check_local(account)
        accounts.set_role(account.name, given.role)
        return asdict(_known(accounts, account.name))

    @router.post("/accounts/{name}/disabled", summary="Let an account sign in no longer, or again")
    def disable(account: Other, given: Disabled) -> dict[str, Any]:
        accounts.set_disabled(account.name, given.disabled)
        return asdict(_known(accounts, account.name))

    @router.post("/accounts/{name}/reset", summary="Give an account a one-time password; its sessions end")
    async def reset(account: Other) -> dict[str, Any]:
        _check_local(account)
        password = await access.in_turn(accounts.reset, account.name)
        return asdict(_known(accounts, account.name)) | {"password": password}

    return router


def as_json(person: Person) -> dict[str, Any]:
    """Somebody who is signed in."""
    return {"name": person.name, "roles": sorted(person.roles), "change_password": person.must_change}


def with_cookies(response: Response, other: Response) -> Response:
    """The first, with the cookies of the second."""
    for name, value in other.raw_headers:
        if name == b"set-cookie":
            response.raw_headers.append((name, value))
    return response


def _known(accounts: Accounts, name: str) -> AccountView:
    found = accounts.view(name)
    if found is None:
        raise ApiError(404, "no-such-account", "there is no such account", "", "look at the list")
    return found


def _check_local(account: AccountView) -> None:
    if account.source != "local":
        raise ApiError(
            409, "managed-elsewhere", "this account is managed elsewhere",
            "the hospital's sign-in service knows its password and role", "change them there",
        )  # fmt: skip
