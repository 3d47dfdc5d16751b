"""Who may take part: the coordinator's authority, the keys that sites make themselves, invitations and enrolments."""

from wardround.deploy.provisioning.authority import Authority, CertificateFacts, certificate_facts
from wardround.deploy.provisioning.invitation import (
    Enrolment,
    Invitation,
    make_enrolment,
    make_invitation,
    read_enrolment,
    read_invitation,
)
from wardround.deploy.provisioning.keys import NodeKey, make_node_key

__all__ = [
    "Authority",
    "CertificateFacts",
    "Enrolment",
    "Invitation",
    "NodeKey",
    "certificate_facts",
    "make_enrolment",
    "make_invitation",
    "make_node_key",
    "read_enrolment",
    "read_invitation",
]
