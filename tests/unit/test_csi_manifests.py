"""The manifests in deploy/kubernetes: they fit each other, the plugin, and the page that says how to install them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.csi import csi_pb2 as csi
from api.csi.controller import get_capabilities
from api.csi.identity import PLUGIN_NAME
from api.csi.parameters import filesystem_parameter, snapshot_members, volume_members
from domain.settings import Settings
from tests.support.commands import written

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())
]
KUBELET = "/var/lib/kubelet"


def of(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [one for one in OBJECTS if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return found


CONTROLLER, NODE = of("Deployment"), of("DaemonSet")
PODS: list[dict[str, Any]] = [CONTROLLER["spec"]["template"]["spec"], NODE["spec"]["template"]["spec"]]


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in pod["containers"]}


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in container["volumeMounts"]}


def option(container: dict[str, Any], name: str) -> str:
    (value,) = [text.partition("=")[2] for text in container["args"] if text.startswith(f"--{name}=")]
    return str(value)


def test_every_manifest_is_a_resource_and_in_the_namespace() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    namespaced = [
        one for one in OBJECTS if one["kind"] in ("ConfigMap", "DaemonSet", "Deployment", "Role", "RoleBinding")
    ]

    assert set(KUSTOMIZATION["resources"]) == files
    assert {one["metadata"]["namespace"] for one in namespaced} == {of("Namespace")["metadata"]["name"]}
    assert KUSTOMIZATION["namespace"] == of("Namespace")["metadata"]["name"]


def test_driver_classes_and_paths_have_the_name_of_the_plugin() -> None:
    assert of("CSIDriver")["metadata"]["name"] == PLUGIN_NAME
    assert of("StorageClass")["provisioner"] == of("VolumeSnapshotClass")["driver"] == PLUGIN_NAME
    assert f"plugins/{PLUGIN_NAME}/" in option(containers(PODS[1])["registrar"], "kubelet-registration-path")


def test_nodes_attach_without_the_controller() -> None:
    answer = get_capabilities(None, csi.ControllerGetCapabilitiesRequest())  # type: ignore[arg-type]
    publishes = csi.ControllerServiceCapability.RPC.PUBLISH_UNPUBLISH_VOLUME

    assert of("CSIDriver")["spec"]["attachRequired"] is False
    assert publishes not in [one.rpc.type for one in answer.capabilities]


def test_parameters_of_the_classes_are_those_of_the_plugin() -> None:
    parameters = of("StorageClass")["parameters"]

    assert filesystem_parameter(parameters) == "xfs"
    assert volume_members(parameters) == {"autogrow": {"usage_above": 80, "percent": 20, "up_to": "1TiB"}}
    assert snapshot_members(of("VolumeSnapshotClass").get("parameters", {})) == {}
    assert of("StorageClass")["allowVolumeExpansion"] is True


def test_each_pod_has_the_plugin_and_its_sidecars() -> None:
    assert set(containers(PODS[0])) == {"csi", "provisioner", "resizer", "snapshotter", "livenessprobe"}
    assert set(containers(PODS[1])) == {"csi", "node", "registrar", "livenessprobe"}


@pytest.mark.parametrize("pod", PODS)
def test_plugin_and_sidecars_of_a_pod_meet_at_one_socket(pod: dict[str, Any]) -> None:
    plugin = containers(pod)["csi"]
    endpoint = plugin["args"][plugin["args"].index("--endpoint") + 1].removeprefix("unix://")
    sidecars = [one for one in pod["containers"] if one["image"] != "cistern"]

    assert {option(one, "csi-address") for one in sidecars} == {endpoint}
    assert {mounts(one)["socket"]["mountPath"] for one in (plugin, *sidecars)} == {str(Path(endpoint).parent)}


@pytest.mark.parametrize("pod", PODS)
def test_all_that_use_the_socket_are_one_user(pod: dict[str, Any]) -> None:
    """The socket is for its user and group only."""
    default = pod.get("securityContext", {}).get("runAsUser")
    users = {one.get("securityContext", {}).get("runAsUser", default) for one in pod["containers"]}

    assert len(users) == 1
    assert None not in users


@pytest.mark.parametrize("pod", PODS)
def test_health_is_what_the_sidecar_says(pod: dict[str, Any]) -> None:
    plugin, sidecar = containers(pod)["csi"], containers(pod)["livenessprobe"]
    (port,) = plugin["ports"]

    assert port["containerPort"] == int(option(sidecar, "health-port"))
    probes = [plugin[name] for name in ("readinessProbe", "livenessProbe")]
    assert [one["httpGet"] for one in probes] == [{"path": "/healthz", "port": port["name"]}] * 2
    assert min(one["timeoutSeconds"] for one in probes) > int(option(sidecar, "probe-timeout").removesuffix("s"))


def test_agent_and_plugin_of_a_node_have_one_name_and_see_the_same_directories() -> None:
    agent, plugin = containers(PODS[1])["node"], containers(PODS[1])["csi"]
    names = [{one["name"]: one for one in container["env"]}["CISTERN_NODE"] for container in (agent, plugin)]

    assert names[0] == names[1]
    assert mounts(agent)["kubelet"]["mountPath"] == mounts(plugin)["kubelet"]["mountPath"] == KUBELET
    assert {one["mountPropagation"] for one in mounts(agent).values() if one["name"] != "devices"} == {"Bidirectional"}
    assert mounts(plugin)["kubelet"]["mountPropagation"] == "HostToContainer"
    assert agent["securityContext"]["privileged"] is True
    assert not any(one.get("securityContext", {}).get("privileged") for one in (*PODS[0]["containers"], plugin))


def test_kubelet_finds_the_socket_where_the_registrar_says() -> None:
    volumes = {one["name"]: one.get("hostPath", {}).get("path") for one in PODS[1]["volumes"]}
    registered = option(containers(PODS[1])["registrar"], "kubelet-registration-path")

    assert str(Path(registered).parent) == volumes["socket"]
    assert volumes["registration"] == f"{KUBELET}/plugins_registry"
    assert volumes["kubelet"] == KUBELET


@pytest.mark.parametrize("pod", PODS)
def test_mounts_and_volumes_of_a_pod_fit(pod: dict[str, Any]) -> None:
    used = {one["name"] for container in pod["containers"] for one in container["volumeMounts"]}

    assert used == {one["name"] for one in pod["volumes"]}


def test_commands_of_the_containers_exist() -> None:
    ours = [one for pod in PODS for one in pod["containers"] if one["image"] == "cistern"]

    assert {one["args"][0] for one in ours} == {"cistern"}
    # The agent is built beside the plugin.
    assert {one["args"][1] for one in ours} <= written() | {"node"}


def test_images_are_pinned_and_the_own_one_is_named_in_one_place() -> None:
    images = {one["image"] for pod in PODS for one in pod["containers"]} - {"cistern"}

    assert [one["name"] for one in KUSTOMIZATION["images"]] == ["cistern"]
    assert all(re.fullmatch(r"registry\.k8s\.io/sig-storage/[a-z-]+:v\d+\.\d+\.\d+", image) for image in images)


def test_secret_of_the_page_has_the_keys_that_the_pods_read() -> None:
    variables = [one for pod in PODS for container in pod["containers"] for one in container.get("env", ())]
    references = [one["valueFrom"]["secretKeyRef"] for one in variables if "secretKeyRef" in one.get("valueFrom", {})]

    assert {one["name"] for one in references} == {"cistern"}
    assert {one["key"] for one in references} == set(re.findall(r"--from-literal=([a-z-]+)=", PAGE))


def test_settings_are_variables_of_cistern() -> None:
    known = {f"CISTERN_{name.upper()}" for name in Settings.model_fields} | {"CISTERN_URL"}
    config = of("ConfigMap")
    sources = [one.get("envFrom") for pod in PODS for one in pod["containers"] if one["image"] == "cistern"]

    assert set(config["data"]) <= known
    assert sources == [[{"configMapRef": {"name": config["metadata"]["name"]}}]] * 3


def test_accounts_and_roles_of_the_pods_exist() -> None:
    accounts = {one["metadata"]["name"] for one in OBJECTS if one["kind"] == "ServiceAccount"}

    assert {pod["serviceAccountName"] for pod in PODS} == accounts
    for binding in ("RoleBinding", "ClusterRoleBinding"):
        (subject,) = of(binding)["subjects"]
        assert subject["name"] == PODS[0]["serviceAccountName"]
        assert of(of(binding)["roleRef"]["kind"])["metadata"]["name"] == of(binding)["roleRef"]["name"]


@pytest.mark.parametrize("workload", [CONTROLLER, NODE])
def test_selectors_fit_the_labels(workload: dict[str, Any]) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]

    assert workload["spec"]["selector"]["matchLabels"] == labels == workload["metadata"]["labels"]
