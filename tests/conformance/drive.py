"""Drives a server with MONAI Label's own client, as 3D Slicer's plug-in does: ``python drive.py ASK.json``.

It runs in an environment that holds that client and nothing of ours. What it is asked to do and with which files stands
in ASK.json; what came back, it says as JSON. Judging is done by who called it.
"""

import json
import sys
from pathlib import Path
from urllib.parse import quote_plus

from monailabel.client.client import MONAILabelClient, MONAILabelClientException, MONAILabelUtils, bytes_to_str


def main() -> None:
    """Do all that a session of 3D Slicer does, in its order."""
    ask = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(ask["folder"])
    said: dict[str, object] = {}

    def refused(name: str, call: object, *given: object) -> None:
        try:
            call(*given)
            said[name] = None
        except MONAILabelClientException as error:
            said[name] = str(error.msg)

    stranger = MONAILabelClient(ask["url"], str(folder))
    said["enabled"] = stranger.auth_enabled()
    refused("stranger", stranger.info)
    refused("wrong password", stranger.auth_token, ask["user"], "not the password")

    client = MONAILabelClient(ask["url"], str(folder), client_id="user-xyz")
    client.update_auth(client.auth_token(ask["user"], ask["password"]))
    said["valid"] = client.auth_valid_token()
    said["info"] = client.info()
    said["sample"] = sample = client.next_sample("first", {})
    # 3D Slicer loads an image by its address alone: its plug-in shows no token there.
    status, _, _, headers = MONAILabelUtils.http_method(
        "GET", ask["url"], f"/datastore/image?image={quote_plus(sample['id'])}"
    )
    said["image without a token"] = [status, headers["content-disposition"]]
    status, body, _, headers = MONAILabelUtils.http_method(
        "GET", ask["url"], f"/datastore/image?image={sample['id']}", headers=client._headers
    )
    said["image"] = [status, headers["content-disposition"]]
    (folder / "image.nii.gz").write_bytes(body)

    def infer(name: str, model: str, image: str, params: dict, **more: str) -> None:
        file, reply = client.infer(model, image, params, **more)
        said[name] = [file, reply]

    infer("points", ask["points model"], sample["id"], dict(ask["points"], result_extension=".nrrd"))
    infer("nothing drawn", ask["automatic model"], sample["id"], {"result_extension": ".nii.gz"})
    infer("scribbles", ask["scribbles model"], sample["id"], ask["scribbles"], label_in=ask["scribbles file"])
    infer("on the bench", ask["points model"], sample["id"], dict(ask["points"], x_session=True, x_layers=["residual"]))
    infer("a file", ask["points model"], "", dict(ask["points"]), file=ask["image file"])

    # Right after a form and after JSON: this client keeps the headers of the request before.
    for name in ("session", "session after JSON"):
        said[name] = session = client.create_session(ask["image file"])
        said[f"{name} again"] = client.get_session(session["session_id"])
        infer(f"{name} points", ask["points model"], "", dict(ask["points"]), session_id=session["session_id"])
        said[f"{name} removed"] = client.remove_session(session["session_id"])
        refused(f"{name} gone", client.get_session, session["session_id"])
        client.next_sample("first", {})

    said["uploaded"] = client.upload_image(ask["image file"], "Muster^Erika 1970-01-01")
    infer("on the upload", ask["points model"], "Muster^Erika 1970-01-01", dict(ask["points"]))

    said["saved"] = client.save_label(sample["id"], ask["label file"], params={"label_info": ask["label info"]})
    said["datastore"] = client.datastore()
    said["label"] = client.download_label(sample["id"], "final")
    said["next sample"] = client.next_sample("first", {})

    said["not running"] = client.train_status(check_if_running=True)
    said["train"] = client.train_start(ask["points model"], {})
    said["status"] = client.train_status()
    said["stopped"] = client.train_stop()

    said["saved again"] = client.save_label(
        sample["id"], ask["label file"], tag="final", params={"label_info": ask["label info"]}
    )
    said["datastore at the end"] = client.datastore()
    said["last sample"] = client.next_sample("first", {})
    administrator = MONAILabelClient(ask["url"], str(folder))
    administrator.update_auth(administrator.auth_token(ask["administrator"], ask["administrator's password"]))
    status, body, _, _ = MONAILabelUtils.http_method(
        "GET", ask["url"], "/logs/?lines=500&text=true", headers=administrator._headers
    )
    said["log"] = [status, bytes_to_str(body)]
    said["log for others"], _, _, _ = MONAILabelUtils.http_method("GET", ask["url"], "/logs/", headers=client._headers)

    refused("no such model", client.infer, "nothing", sample["id"], {})
    refused("no such image", client.infer, ask["points model"], "/etc/passwd", {})
    refused("no such strategy", client.next_sample, "nothing", {})
    refused("no points", client.infer, ask["points model"], sample["id"], {ask["label"]: [[1, 2]]})
    refused("no such label", client.download_label, "nothing", "final")
    status, body, _, _ = MONAILabelUtils.http_method("GET", ask["url"], "/nothing-here", headers=client._headers)
    said["nothing"] = [status, bytes_to_str(body)[:200]]
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
