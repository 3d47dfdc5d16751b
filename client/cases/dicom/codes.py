"""What a label's name means to other machines: codes of SNOMED CT where the name is a known one, else our own."""

import hashlib

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99WARDROUND"
"""Designator of codes that say no more than that two names are the same; what begins with 99 is private (PS3.16, 8)."""
LONGEST_MEANING = 64

_ORGANS = (
    "adrenal gland", "aorta", "bladder", "bone", "brain", "brain stem", "breast", "colon", "duodenum", "esophagus",
    "gallbladder", "heart", "hepatic vein", "hippocampus", "inferior vena cava", "kidney", "left atrium",
    "left ventricle", "liver", "lung", "pancreas", "portal vein", "prostate", "right atrium", "right ventricle",
    "spleen", "stomach", "thyroid", "trachea", "uterus", "vertebra",
)  # fmt: skip
_CHANGES = ("edema", "lesion", "mass", "necrosis", "neoplasm", "tumor")
_OTHER_SPELLINGS = {
    "brainstem": "brain stem", "gall bladder": "gallbladder", "oedema": "edema", "oesophagus": "esophagus",
    "thyroid gland": "thyroid", "tumour": "tumor", "urinary bladder": "bladder",
}  # fmt: skip


def meaning(name: str) -> str:
    """The name as an attribute may hold it: at most 64 characters, no backslash (it separates values), no control."""
    kept = "".join("/" if one == "\\" else one for one in name if one.isprintable()).strip()
    return kept[:LONGEST_MEANING] or "unnamed"


def category(name: str) -> Code:
    """What kind of thing the name stands for: a part of the body, a change in it, or (where unknown) tissue."""
    known = _known(name)
    if known in _ORGANS:
        return codes.SCT.AnatomicalStructure
    return codes.SCT.MorphologicallyAbnormalStructure if known in _CHANGES else codes.SCT.Tissue


def type_of(name: str) -> Code:
    """What the name stands for: a code of SNOMED CT, or a private one that is the same for the same name."""
    known = _known(name)
    if known in _ORGANS or known in _CHANGES:
        code: Code = getattr(codes.SCT, known.title().replace(" ", ""))
        return code
    return Code(hashlib.sha256(name.encode()).hexdigest()[:12].upper(), PRIVATE_SCHEME, meaning(name))


def _known(name: str) -> str:
    plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    return _OTHER_SPELLINGS.get(plain, plain)
