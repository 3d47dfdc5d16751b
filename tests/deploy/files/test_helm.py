"""The charts, rendered by our own strict reader of templates, and by Helm where it is installed."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import Chart, ChartError

from wardround import __version__

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "helm"
FULL: dict[str, dict[str, Any]] = {
    "coordinator": {
        "names": ["fed.example.org", "10.1.2.3"],
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": "sha256:" + "ab" * 32},
        "service": {"annotations": {"example.org/a": "b"}},
        "storage": {"className": "fast"},
        "page": {"readers": {"app": "prometheus"}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
    },
    "site": {
        "invitationSecret": "north",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": "sha256:" + "ab" * 32},
        "proxy": "http://proxy.example.org:3128",
        "outgoingPorts": [3128],
        "gpus": 1,
        "storage": {"className": "fast"},
        "page": {"readers": {"app": "prometheus"}},
        "workbench": {
            "enabled": True,
            "from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "service": {"annotations": {"example.org/a": "b"}},
            "ingress": {
                "host": "bench.example.org",
                "className": "nginx",
                "tlsSecret": "bench",
                "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"},
            },
        },
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
    },
}
LEAST: dict[str, dict[str, Any]] = {"coordinator": {"names": ["fed.example.org"]}, "site": {}}
CASES = [
    pytest.param(name, values, id=f"{name}-{size}")
    for size, both in (("full", FULL), ("least", LEAST))
    for name, values in both.items()
]


def objects(name: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in Chart(FOLDER / name, changes=values).render()}


def pod(name: str, values: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects(name, values)["StatefulSet"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize(("name", "values"), CASES)
def test_every_container_is_confined(name: str, values: dict[str, Any]) -> None:
    spec = pod(name, values)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize(("name", "values"), CASES)
def test_every_mount_has_its_volume(name: str, values: dict[str, Any]) -> None:
    found = objects(name, values)["StatefulSet"]["spec"]
    spec = found["template"]["spec"]
    there = {volume["name"] for volume in spec["volumes"]}
    there |= {claim["metadata"]["name"] for claim in found["volumeClaimTemplates"]}
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    assert mounted == there


@pytest.mark.parametrize(("name", "values"), CASES)
def test_selectors_find_the_pods(name: str, values: dict[str, Any]) -> None:
    found = objects(name, values)
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert found["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    if "Service" in found:
        assert found["Service"]["spec"]["selector"] == labels


@pytest.mark.parametrize(("name", "values"), CASES)
def test_the_page_cannot_write_and_has_a_port_of_its_own(name: str, values: dict[str, Any]) -> None:
    spec = pod(name, values)
    page = next(container for container in spec["containers"] if container["name"] == "page")
    state = [mount for mount in page["volumeMounts"] if mount["mountPath"] == "/var/lib/wardround"]
    assert all(mount["readOnly"] for mount in state)
    port = page["ports"][0]["containerPort"]
    assert str(port) == page["args"][-1]
    assert port not in (8443, 8444, 8445), "serve has its own page on 8445 of the same network"
    annotations = objects(name, values)["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)


def test_nobody_comes_into_a_site() -> None:
    found = objects("site", LEAST["site"])
    assert "Service" not in found
    policy = found["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy["ingress"]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 8443]


def test_only_chosen_addresses_reach_the_workbench() -> None:
    found = objects("site", FULL["site"])
    (container,) = [
        one for one in found["StatefulSet"]["spec"]["template"]["spec"]["containers"] if one["name"] == "site"
    ]
    assert container["ports"] == [{"name": "workbench", "containerPort": 8447}]
    service, ingress = found["Service"], found["Ingress"]["spec"]
    assert (service["spec"]["type"], service["spec"]["ports"][0]["targetPort"]) == ("ClusterIP", "workbench")
    (path,) = ingress["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "workbench"}}
    assert ingress["tls"][0]["hosts"] == ["bench.example.org"]
    readers, people = found["NetworkPolicy"]["spec"]["ingress"]
    assert people == {"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": "workbench"}]}
    assert readers["ports"] == [{"port": 8446}]


def test_a_workbench_that_nobody_was_chosen_for_is_reached_by_nobody() -> None:
    """A rule without `from` would let everybody in."""
    found = objects("site", {"workbench": {"enabled": True}})
    assert not found["NetworkPolicy"]["spec"]["ingress"]
    assert "Ingress" not in found
    off = objects("site", {"workbench": {"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}})
    assert not off["NetworkPolicy"]["spec"]["ingress"]


def test_a_coordinator_dials_nobody() -> None:
    policy = objects("coordinator", FULL["coordinator"])["NetworkPolicy"]["spec"]
    assert policy["egress"] == []
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [8443, 8455]
    assert "from" in policy["ingress"][1], "the page is for chosen pods"


def test_a_coordinator_needs_a_name() -> None:
    with pytest.raises(ChartError, match="at least one host name"):
        Chart(FOLDER / "coordinator").render()


def test_a_name_cannot_become_a_command() -> None:
    names = ['"; rm -rf / #', "$(id)", "a\nb: c"]
    init = pod("coordinator", {"names": names})["initContainers"][0]
    assert [init["args"][number] for number in range(3, len(init["args"]), 2)] == names
    assert '"$@"' in init["args"][0]


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_every_value_is_used(name: str) -> None:
    """A value that no template reads would be set in vain."""

    def leaves(values: Any, prefix: str = "") -> set[str]:
        if not isinstance(values, dict) or not values:
            return {prefix.rstrip(".")}
        return {leaf for key, value in values.items() for leaf in leaves(value, f"{prefix}{key}.")}

    chart = Chart(FOLDER / name, changes=FULL[name])
    chart.render()
    plain = Chart(FOLDER / name, changes=LEAST[name])
    plain.render()
    used = chart.used | plain.used
    defaults = yaml.safe_load((FOLDER / name / "values.yaml").read_text())
    assert {
        leaf for leaf in leaves(defaults) if not any(leaf == use or leaf.startswith(f"{use}.") for use in used)
    } == set()


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_the_version_is_ours(name: str) -> None:
    about = yaml.safe_load((FOLDER / name / "Chart.yaml").read_text())
    values = yaml.safe_load((FOLDER / name / "values.yaml").read_text())
    assert (about["appVersion"], values["image"]["tag"]) == (__version__, __version__)


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Values.nothing }}",
        "{{ if .Values.a }}",
        "{{ lookup 1 }}",
        "{{ end }}",
        "{{ .Values.m }}",
        "{{",
        "a: 1\na: 2",
    ],
)
def test_the_reader_of_templates_refuses(tmp_path: Path, template: str) -> None:
    """That the tests above can fail."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("name: x\n")
    (tmp_path / "values.yaml").write_text("a: 1\nm: {b: 2}\n")
    (tmp_path / "templates" / "x.yaml").write_text(template)
    with pytest.raises(ChartError):
        Chart(tmp_path).render()


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
@pytest.mark.parametrize(("name", "values"), CASES)
def test_helm_says_the_same(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    given = tmp_path / "values.json"
    given.write_text(json.dumps(values))
    for command in (["lint", "--strict"], ["template", "test"]):
        line = ["helm", *command, str(FOLDER / name), "--values", str(given)]
        answer = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    rendered = {found["kind"]: found for found in yaml.safe_load_all(answer.stdout) if found}
    assert rendered == objects(name, values)
