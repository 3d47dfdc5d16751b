"""A coordinator and an app that want too much of a real hospital: what they get is a code, and nothing of a patient.

Between the hospital and its coordinator stands a relay that hears every byte in the clear. Names of patients stand in
names of files and folders and in headers of images; these and the images are looked for in all that was heard.
"""

import functools
import gzip
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from canaries import WORDS, files, find, outline, pixels, words, write_case
from deployment import answer_to, ask, lead, make_bundle, submit
from fastapi.testclient import TestClient
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from hospital import Hospital, hospital
from living import SHAPE, START, arrive, plan

from wardround import pages
from wardround.client.app import SITE_ERROR
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.gate.ledger import Ledger
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.status import create_app as site_page
from wardround.deploy.cli import run
from wardround.errors import StorageError
from wardround.server.status import create_app as coordinator_page
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, digest, weights_from_record, weights_to_record

IMAGE, LABELS = draw_phantom(np.random.default_rng(0), shape=SHAPE)
NEEDLES = words() | pixels(IMAGE) | outline(LABELS)
WEIGHT = max(START, key=lambda name: START[name].size)
"""Name of the largest array of the network."""

THIEF = """
import gzip
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    home = Path(context.node_config["agent"]).parent.parent
    images = b"".join(gzip.decompress(path.read_bytes()) for path in sorted((home / "site/store/volumes").iterdir()))
    names = b"".join(path.read_bytes() for path in sorted((home / "site/store").glob("store.sqlite*")))
    (home / "booty").write_bytes(images + names + str(home).encode())
    metrics = MetricRecord({"num-examples": 2.0})
    match message.content["plan"]["how"]:
        case "error":
            raise ValueError(f"no such file: {home}")
        case "arrays":
            arrays = ArrayRecord({"images": Array(np.frombuffer(images, np.uint8))})
            content = RecordDict({"arrays": arrays, "metrics": metrics})
        case "text":
            content = RecordDict({"metrics": metrics, "note": ConfigRecord({"home": str(home), "names": names})})
    return Message(content, reply_to=message)
"""
THIEFS = make_bundle({"theirs/__init__.py": "", "theirs/app.py": THIEF}, clientapp="theirs.app:app")
SHADOW = make_bundle({"wardround/__init__.py": "", "wardround/client/app.py": THIEF})


def bring(folder: Path, home: SiteHome) -> None:
    """Import a case as an administrator does, and two more."""
    image, label = write_case(folder, IMAGE, LABELS)
    assert run(["site", "import", str(image), "--label", str(label), "--home", str(home.path)]) == 0
    arrive(home, 1)
    arrive(home, 100, role="test")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images of the patient lie."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, planted: Path) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("t")
    place = WORDS["name of the home's folder"]
    with hospital(folder, name=place, cases=functools.partial(bring, planted), tapped=True) as found:
        yield found


def said(reply: Message) -> tuple[int, str]:
    """Number and code of an error."""
    assert reply.has_error()
    return reply.error.code, reply.error.reason


def goes_on(site: Hospital, number: int) -> Message:
    """The site takes part in a round as if nothing had been."""
    reply = site.ask("train", plan(number))
    assert not reply.has_error(), reply.error
    return reply


def changed(**arrays: Array) -> ArrayRecord:
    return ArrayRecord({**dict(weights_to_record(START)), **arrays})


def other(array: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> ArrayRecord:
    """The weights, the largest of them replaced."""
    return changed(**{WEIGHT: Array(array)})


def declared(shape: tuple[int, ...], data: bytes) -> ArrayRecord:
    return changed(**{WEIGHT: Array("float32", shape, "numpy.ndarray", data)})


def test_an_honest_round_and_what_is_heard_of_it(site: Hospital) -> None:
    assert site.tap is not None
    update = weights_from_record(goes_on(site, 1).content.array_records[ARRAYS])
    scores = site.ask("evaluate", plan(1))
    assert set(scores.content) == {METRICS}
    # What has to travel is heard, so that what is not heard did not travel.
    crossing = {"weights": START[WEIGHT].tobytes(), "update": update[WEIGHT].tobytes()}
    assert find(crossing, site.tap.told) == {"weights"}
    assert find(crossing, site.tap.sent) == {"update"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"updates_per_case": 100_000}, "plan-updates"),
        pytest.param({"rounds": 1_000_000}, "plan-rounds", marks=pytest.mark.long),
        pytest.param({"model": "unet2d"}, "plan-model", marks=pytest.mark.long),
        pytest.param({"supervision": "dense"}, "plan-supervision", marks=pytest.mark.long),
        pytest.param({"batch_size": 64}, "plan-batch", marks=pytest.mark.long),
    ],
)
def test_a_plan_that_asks_for_more_than_the_site_allows(site: Hospital, fields: dict[str, object], code: str) -> None:
    assert said(site.ask("train", plan(2, **fields))) == (SITE_ERROR, code)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        (declared((2684354560,), b"\x93NUMPY"), "too-large"),
        pytest.param(other(np.full_like(START[WEIGHT], np.nan)), "not-finite", marks=pytest.mark.long),
        pytest.param(other(START[WEIGHT][..., :1]), "shape", marks=pytest.mark.long),
        pytest.param(changed(more=Array(np.zeros(2, np.float32))), "names", marks=pytest.mark.long),
        pytest.param(declared(START[WEIGHT].shape, pickle.dumps(THIEF)), "encoding", marks=pytest.mark.long),
    ],
    ids=["10 GB declared", "NaN", "wrong shape", "extra key", "pickle"],
)
def test_weights_that_are_none(site: Hospital, arrays: ArrayRecord, code: str) -> None:
    assert said(site.ask("train", plan(2), arrays)) == (SITE_ERROR, code)


def test_a_message_that_comes_twice_is_answered_twice_and_learnt_from_once(site: Hospital) -> None:
    first, second = goes_on(site, 1), goes_on(site, 1)
    # To the last bit, the seconds that it took included.
    assert digest(first.content) == digest(second.content)


def test_an_app_with_a_wardround_package_of_its_own(site: Hospital, tmp_path: Path) -> None:
    submit(site.coordinator, SHADOW)
    with lead(site.coordinator) as grid:
        reply = site.send("train", RecordDict({PLAN: ConfigRecord({"how": "text"})}), grid)
    assert said(reply) == (ErrorCode.INVALID_FAB, "bundle-not-approved")
    # Nor can it ever be approved.
    assert site.typed("approve", hashlib.sha256(SHADOW).hexdigest(), "--with-code") == 8
    assert not (site.home.path / "booty").exists()


def test_an_app_that_was_approved_with_its_code_and_steals(site: Hospital, tmp_path: Path) -> None:
    bundle = tmp_path / "thief.fab"
    bundle.write_bytes(THIEFS)
    assert site.typed("approve", "--file", str(bundle)) == 8
    assert site.typed("approve", "--file", str(bundle), "--with-code") == 0
    submit(site.coordinator, THIEFS)
    with lead(site.coordinator) as grid:
        asked = [
            ask(grid, site.node, "train", RecordDict({PLAN: ConfigRecord({"how": how})}))
            for how in ("arrays", "text", "error")
        ]
        heard = [said(answer_to(grid, name)) for name in asked]
    withheld = (SITE_ERROR, "not-released")
    assert heard == [withheld, withheld, (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "app-raised")]
    # It did have in its hands what it was to bring.
    booty = [(site.home.path / "booty").read_bytes()]
    assert {"name of the home's folder (as it is)", "name of a file (as it is)"} <= find(NEEDLES, booty)
    assert find(pixels(IMAGE), booty)
    (site.home.path / "booty").unlink()


def test_the_text_of_an_error_stays(site: Hospital) -> None:
    with CaseStore(site.home.site / STORE) as store:
        case = store.cases("stream")[0]
        volumes = [
            path
            for path in (site.home.site / STORE / "volumes").iterdir()
            if find({"image": IMAGE.array.astype("<f4").tobytes(order="F")}, [gzip.decompress(path.read_bytes())])
        ]
        (volume,) = volumes
        whole = volume.read_bytes()
        volume.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        try:
            with pytest.raises(StorageError) as error:
                store.image(case)
            assert WORDS["name of the home's folder"] in str(error.value)
            reply = site.ask("train", plan(1, run="another"))
        finally:
            volume.write_bytes(whole)
    assert said(reply) == (SITE_ERROR, "storage-error")
    goes_on(site, 2)


def test_the_search_finds_what_is_there(site: Hospital, planted: Path) -> None:
    """What is looked for below would be found: where it was planted, it is."""
    told = [*files(planted), *files(site.home.path), str(site.home.path).encode()]
    found = find(words(), told)
    assert {f"{place} (as it is)" for place in WORDS} <= found
    # Along each axis: in memory a volume may lie in any order.
    array = IMAGE.array.astype("<f4")
    orders = [np.moveaxis(array, axis, -1).tobytes() for axis in range(3)]
    wanted = {name for name in NEEDLES if name.startswith("raw") and name.endswith("<f4")}
    assert wanted == find({name: NEEDLES[name] for name in wanted}, orders)
    assert find(pixels(IMAGE), files(site.home.path))


def test_of_all_that_was_planted_nothing_was_ever_heard(site: Hospital) -> None:
    assert site.tap is not None
    assert sum(map(len, site.tap.sent)) > 3 * START[WEIGHT].nbytes
    assert find(NEEDLES, [*site.tap.sent, *site.tap.told]) == set()


def test_of_all_that_was_planted_the_coordinator_holds_nothing(site: Hospital) -> None:
    client = TestClient(pages.Guard(coordinator_page(site.coordinator.path)), base_url="http://localhost")
    shown = [client.get(path).content for path in ("/", "/metrics")]
    assert find(NEEDLES, [*files(site.coordinator.path), *shown]) == set()


def test_what_the_site_writes_down_of_messages_names_no_patient(
    site: Hospital, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(site.home.ledger)
    assert ledger.verify().ok
    assert {entry.code for entry in ledger.entries()} >= {"sent", "not-released", "plan-updates", "too-large"}
    capfd.readouterr()
    assert site.typed("audit", "--last", "0", "--json") == 0
    assert site.typed("status", "--json") == 0
    client = TestClient(pages.Guard(site_page(site.home.path)), base_url="http://localhost")
    kept = [path.read_bytes() for path in (site.home.ledger, site.home.approvals)]
    shown = [capfd.readouterr().out.encode(), *(client.get(path).content for path in ("/", "/metrics"))]
    # The page says whose it is, to those who sit before the machine: the home's folder is all that it names.
    found = find(NEEDLES, [*kept, *shown])
    assert {name for name in found if not name.startswith("name of the home's folder")} == set()
