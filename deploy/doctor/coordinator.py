"""Checks of a coordinator: certificates, private files, database, ports, processes, and whether sites still come."""

import datetime
import math
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wardround.deploy.doctor import line, machine, trust
from wardround.deploy.doctor.finding import Finding, bad, good, of_error
from wardround.deploy.provisioning.authority import as_certified, certificate_facts
from wardround.errors import WardroundError
from wardround.pages import ago, count
from wardround.server.home import CoordinatorHome
from wardround.server.overview import Overview, read_overview

SILENT_S = 3600.0
"""A registered site that was not seen for so long is worth a word."""
_AUTHORITY_DAYS, _SERVER_DAYS = 90.0, 14.0
_LOCKED_S = 5.0


def coordinator_doctor(path: Path) -> Iterator[Finding]:
    """Check the coordinator whose folder is `path`, one thing after the other."""
    home = CoordinatorHome(path)
    try:
        settings = home.settings
    except WardroundError as error:
        yield of_error("settings", error)
        return
    yield good("settings", settings.url)
    secrets = [home.ca / "ca.key", home.server_key, home.operator_token, home.superexec_secret]
    yield machine.private("private files", secrets)
    yield _authority(home)
    yield _certificate(home)
    yield machine.disk(home.path)
    yield machine.clock()
    yield _database(home.database)
    view = read_overview(home)
    yield from _processes(home, view)
    yield from _line(home, view)
    yield _journals(view)
    yield _sites(view)


def _authority(home: CoordinatorHome) -> Finding:
    try:
        facts = certificate_facts(home.ca_certificate.read_bytes())
    except OSError as error:
        return bad("authority", f"{home.ca_certificate} cannot be read", error.strerror or "", "restore it from a copy")
    except WardroundError as error:
        return of_error("authority", error)
    days = facts.days_left(_now())
    if days < _AUTHORITY_DAYS:
        return bad(
            "authority",
            "the certificate of the authority " + ("has expired" if days < 0 else f"expires in {days:.0f} days"),
            f"it is valid until {facts.not_after:%Y-%m-%d}; sites trust nothing else",
            "set up a new coordinator folder and invite the sites again, before that day",
        )
    return good("authority", f"until {facts.not_after:%Y-%m-%d}, fingerprint {facts.fingerprint}")


def _certificate(home: CoordinatorHome) -> Finding:
    try:
        facts = certificate_facts(home.server_certificate.read_bytes())
    except OSError as error:
        return bad(
            "certificate",
            f"{home.server_certificate} cannot be read",
            error.strerror or "",
            "run `wardround coordinator renew`, which makes it anew",
        )
    except WardroundError as error:
        return of_error("certificate", error)
    days = facts.days_left(_now())
    if days < _SERVER_DAYS:
        return bad(
            "certificate",
            "the server's certificate " + ("has expired" if days < 0 else f"expires in {days:.0f} days"),
            "`wardround coordinator serve` renews it in time, and is not running or cannot write to the folder",
            "run `wardround coordinator renew`; then start `serve`, or look into its log",
        )
    try:
        wanted = {as_certified(name).lower() for name in home.settings.names}
    except WardroundError as error:
        return of_error("certificate", error)
    missing = sorted(wanted - {name.lower() for name in facts.names})
    if missing:
        return bad(
            "certificate",
            f"the server's certificate is not made out to {', '.join(missing)}",
            "coordinator.toml was changed since it was made",
            "run `wardround coordinator renew`, which makes it anew",
        )
    return good("certificate", f"until {facts.not_after:%Y-%m-%d}, for {', '.join(facts.names)}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _database(path: Path) -> Finding:
    """Whether it can be written: a transaction is begun and taken back."""
    if not path.exists():
        return good("database", "not made yet; the first start makes it")
    try:
        connection = sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE doctor_was_here (x)")
            connection.execute("ROLLBACK")
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            page = connection.execute("PRAGMA page_size").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        locked = "locked" in str(error)
        return bad(
            "database",
            f"{path} cannot be written",
            "another program holds a lock on it" if locked else f"{error}",
            "end whatever reads or copies it with a lock; a copy is made with `sqlite3 superlink.db .backup FILE`"
            if locked
            else "check owner, mount and disk; restore it from a copy if it is damaged",
        )
    return good(
        "database", f"writable, {free * page / 1e6:.0f} MB of {path.stat().st_size / 1e6:.0f} MB are free pages"
    )


def _processes(home: CoordinatorHome, view: Overview) -> Iterator[Finding]:
    if not view.serving:
        yield bad(
            "coordinator",
            "no coordinator is serving",
            "it was never started, was stopped, or has crashed",
            f"start it (wardround coordinator serve, or its service); a crash has left its reason in {home.logs}",
        )
        return
    yield good("coordinator", "serving")
    for name, what in (("superlink", "SuperLink"), ("superexec", "SuperExec")):
        if machine.is_alive(home.run / f"{name}.pid"):
            yield good(what, "at work")
        else:
            yield bad(
                what,
                f"the {what} is not running",
                "it ended, and is started again after a while",
                f"look into {home.logs / f'{name}.log'}",
            )


def _line(home: CoordinatorHome, view: Overview) -> Iterator[Finding]:
    settings = home.settings
    if not view.serving:
        yield _free_ports(home)
        return
    here = "127.0.0.1" if settings.host in ("0.0.0.0", "") else "::1" if settings.host == "::" else settings.host  # noqa: S104
    try:
        with trust.secure(
            line.Target("localhost" if here in ("127.0.0.1", "::1") else here, settings.port), home.ca_certificate
        ):
            yield good("port", f"{settings.host}:{settings.port} answers with our certificate")
    except line.Broken as broken:
        yield replace(of_error("port", broken), fix=f"look into {home.logs / 'superlink.log'}")
    try:
        outside = replace(line.Target.of(settings.url), proxy=None)
        address = line.resolve(outside)
    except line.Broken as broken:
        yield replace(
            of_error("name", broken), fix="sites look this name up: have it entered in the DNS, or correct `url`"
        )
    else:
        yield good(
            "name", f"{outside.host} is {address}; whether sites get there, they must try: wardround site doctor"
        )


def _free_ports(home: CoordinatorHome) -> Finding:
    settings = home.settings
    wanted = {"port": (settings.host, settings.port), "runtime-port": ("127.0.0.1", settings.runtime_port)}
    if settings.status_port:
        wanted["status-port"] = (settings.status_host, settings.status_port)
    for name, (host, port) in wanted.items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                return bad(
                    "ports",
                    f"{name} {port} cannot be opened on {host}",
                    error.strerror or "",
                    f"end the program that has it, or choose another {name} in coordinator.toml",
                )
    return good("ports", ", ".join(f"{name} {port}" for name, (_, port) in wanted.items()) + " are free")


def _journals(view: Overview) -> Finding:
    for run in view.runs:
        if run.trouble:
            return bad(
                "journals", f"the journal of run {run.name} cannot be read", run.trouble, "restore it from a copy"
            )
    if view.notes:
        return bad("files", "a file cannot be read", "; ".join(view.notes), "restore it from a copy")
    failed = [run.name for run in view.runs if run.state == "failed"]
    return good("runs", count(len(view.runs), "run") + (f", failed: {', '.join(failed)}" if failed else ""))


def _sites(view: Overview) -> Finding:
    registered = [site for site in view.sites if site.state == "registered"]
    if view.online is None:
        return good("sites", f"{len(registered)} registered; nobody knows who is online")
    silent = [site for site in registered if not site.online and not view.now - site.seen < SILENT_S]
    if silent and view.serving:
        named = ", ".join(
            f"{site.name} ({ago(view.now - site.seen) if math.isfinite(site.seen) else 'never seen'})"
            for site in silent
        )
        return bad(
            "sites",
            f"{count(len(silent), 'site')} of {len(registered)} {'is' if len(silent) == 1 else 'are'} silent",
            named,
            "ask there for the output of `wardround site doctor`; a site that has left for good is evicted",
        )
    return good("sites", f"{view.online} of {len(registered)} online")
