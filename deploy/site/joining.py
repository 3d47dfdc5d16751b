"""How a site joins a federation: from an invitation to its own folder and the answer that goes back."""

from pathlib import Path

from wardround.client.gate.policy import POLICY_TEMPLATE
from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
from wardround.client.intake import make_live_site
from wardround.deploy.provisioning import Invitation, certificate_facts, make_enrolment, make_node_key
from wardround.deploy.provisioning.keys import new_home, private_folder, write_public
from wardround.errors import DataError
from wardround.files import write_bytes, write_text

ENROLMENT = "enrolment.json"


def join(path: Path, invitation: Invitation, *, new_key: bool = False) -> tuple[SiteHome, Path]:
    """Make the home of a site, or answer an invitation again; nothing that is there is overwritten.

    Settings and policy stay as the administrator left them, cases and the ledger stay, and so does the key, unless a
    new one is asked for: the old one is then kept beside it. The settings come last and say that the rest is there.

    Returns
    -------
    tuple
        The home, and the file that goes back to the coordinator. It holds nothing that is secret at the site.

    Raises
    ------
    UsageError
        If the folder holds something else.
    DataError
        If it is the home of another site, or of another federation.
    StorageError
        If it cannot be written.
    """
    home = SiteHome(path)
    if home.settings_file.exists():
        _check_same(home, invitation)
    else:
        parts = (home.keys, home.run, home.logs, home.flwr, home.ca, home.policy, home.site)
        new_home(path, {ENROLMENT, *(part.name for part in parts)}, "site")
    private_folder(path)
    for folder in (home.keys, home.run, home.logs, home.flwr):
        private_folder(folder)
    if new_key and home.node_key.exists():
        # Each of them: until the coordinator has enrolled another one, the oldest is the one that it knows.
        former = len(list(home.keys.glob("node.before*")))
        home.node_key.rename(home.keys / (f"node.before-{former}" if former else "node.before"))
    key = make_node_key(home.keys)
    write_public(home.ca, invitation.ca_certificate)
    if not home.policy.exists():
        write_text(home.policy, POLICY_TEMPLATE)
    make_live_site(home, invitation.site)
    answer = path / ENROLMENT
    write_bytes(answer, make_enrolment(invitation, key))
    if not home.settings_file.exists():
        text = SETTINGS_TEMPLATE.format(name=invitation.site, coordinator=invitation.coordinator)
        write_text(home.settings_file, text)
    return home, answer


def _check_same(home: SiteHome, invitation: Invitation) -> None:
    settings = home.settings
    known = certificate_facts(home.ca.read_bytes()).fingerprint if home.ca.exists() else invitation.fingerprint
    if (settings.name, known) != (invitation.site, invitation.fingerprint):
        raise DataError(
            f"{home.path} is the home of site {settings.name} in another federation or under another name",
            f"the invitation is for {invitation.site} of {invitation.coordinator}",
            "choose another --home: a site takes part in one federation",
        )
