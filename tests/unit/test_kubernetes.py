"""The manifests say what the contract says, and what the processes read (deploy/kubernetes, deploy/compose.yaml)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from connectors.watcher import WatcherSettings
from coordinator.settings import Settings as CoordinatorSettings
from deploy.kafka import MAX_MESSAGE_BYTES
from deploy.postgres import OPTIONS
from fluxora.settings import CliSettings
from fluxora.topics import COMMAND_PARTITIONS, INPUT_PARTITIONS
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.settings import DirectorySettings, RelaySettings
from saga_processors.settings import ProcessorSettings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
EXAMPLES = sorted((KUBERNETES / "examples").glob("*.yaml"))

#: What each command reads, by the module it runs.
READS: dict[str, tuple[type[BaseSettings], ...]] = {
    "coordinator": (CoordinatorSettings, DirectorySettings),
    "outbox_relay.messages": (MessageSettings, DirectorySettings),
    "saga_processors": (ProcessorSettings,),
    "saga_processors.clock": (ProcessorSettings,),
    "outbox_relay": (RelaySettings,),
    "connectors": (WatcherSettings,),
    "fluxora": (CliSettings,),
}
#: What `fluxora init` cannot do without, though other commands can.
INIT_READS = {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "SCHEMA_REGISTRY_URL", "CONNECT_URL"}
CONTRACT = {"transaction-coordinator": "coordinator", "saga-orchestrator": "coordinator"} | {
    "outbox-service": "outbox_relay.messages"
}
PROCESSES = CONTRACT | {
    "saga-processor": "saga_processors",
    "deadline-clock": "saga_processors.clock",
    "http-relay": "outbox_relay",
    "connector-watcher": "connectors",
}
REPLICAS = {
    "transaction-coordinator": 3,
    "saga-orchestrator": 3,
    "outbox-service": 3,
    "saga-processor": 3,
    "http-relay": 3,
    "deadline-clock": 2,
    "connector-watcher": 1,
}
#: Members of a consumer group with a name of their own that a new pod takes over.
STATIC_MEMBERS = {"saga-processor", "http-relay"}


def read(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def applied() -> list[dict[str, Any]]:
    listed = read(KUBERNETES / "kustomization.yaml")[0]["resources"]
    return [document for name in listed for document in read(KUBERNETES / name)]


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in applied() if document["kind"] in kinds}


WORKLOADS = of_kind("Deployment", "StatefulSet")
JOBS = of_kind("Job")


def pod(workload: Mapping[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


def container(workload: Mapping[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    return only


def module(workload: Mapping[str, Any]) -> str:
    python, flag, name, *_ = container(workload)["command"]
    assert (python, flag) == ("python", "-m")
    return name


def environment(workload: Mapping[str, Any], name: str = "pod-0") -> dict[str, str]:
    """The variables as a pod would get them."""
    settings = of_kind("ConfigMap")
    found = {}
    for entry in container(workload)["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
            continue
        (source,) = entry["valueFrom"]
        reference = entry["valueFrom"][source]
        match source:
            case "configMapKeyRef":
                found[entry["name"]] = settings[reference["name"]]["data"][reference["key"]]
            case "secretKeyRef":
                assert reference == {"name": "fluxora-db-app", "key": "uri"}
                found[entry["name"]] = "postgresql://fluxora:secret@fluxora-db-rw.fluxora:5432/fluxora"
            case "fieldRef":
                assert reference == {"fieldPath": "metadata.name"}
                found[entry["name"]] = name
    return found


def variables(settings: type[BaseSettings]) -> dict[str, bool]:
    """The name of each variable of a settings class, and whether it must be given."""
    found = {}
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices):
            variable = str(alias.choices[0])
        else:
            variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        found[variable] = field.is_required()
    return found


def seconds(field: str, settings: type[BaseSettings]) -> float:
    return float(settings.model_fields[field].default)


# -- the contract (MISSION, section 5) -------------------------------------------------------------------------------


def test_everything_is_in_the_namespace_fluxora() -> None:
    assert list(of_kind("Namespace")) == ["fluxora"]
    assert {d["metadata"]["namespace"] for d in applied() if d["kind"] != "Namespace"} == {"fluxora"}


@pytest.mark.parametrize("name", CONTRACT)
def test_each_rest_service_is_a_cluster_ip_on_port_8000_with_three_replicas(name: str) -> None:
    service = of_kind("Service")[name]
    assert service["spec"]["type"] == "ClusterIP"
    assert [port["port"] for port in service["spec"]["ports"]] == [8000]
    assert WORKLOADS[name]["kind"] == "Deployment"
    assert WORKLOADS[name]["spec"]["replicas"] == 3


@pytest.mark.parametrize("name", CONTRACT)
def test_each_rest_service_has_the_resources_and_addresses_of_the_contract(name: str) -> None:
    assert container(WORKLOADS[name])["resources"] == {
        "requests": {"cpu": "200m", "memory": "256Mi"},
        "limits": {"cpu": "500m", "memory": "512Mi"},
    }
    assert {"SERVICE_REGISTRY_URL", "DATABASE_URL"} <= environment(WORKLOADS[name]).keys()


def test_every_process_of_the_platform_runs_with_its_replicas() -> None:
    assert {name: module(workload) for name, workload in WORKLOADS.items()} == PROCESSES
    assert {name: workload["spec"]["replicas"] for name, workload in WORKLOADS.items()} == REPLICAS
    assert [container(job)["command"] for job in JOBS.values()] == [["python", "-m", "fluxora", "init"]]


# -- what the processes read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WORKLOADS, *JOBS])
def test_every_variable_is_one_that_the_process_reads_and_none_that_it_needs_is_missing(name: str) -> None:
    workload = (WORKLOADS | JOBS)[name]
    given = environment(workload)
    known: dict[str, bool] = {}
    for settings in READS[module(workload)]:
        known |= variables(settings)
    needed = {variable for variable, required in known.items() if required}
    assert given.keys() <= known.keys()
    assert (INIT_READS if name in JOBS else needed) <= given.keys()


@pytest.mark.parametrize("name", [*WORKLOADS, *JOBS])
def test_the_process_accepts_what_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = (WORKLOADS | JOBS)[name]
    for variable, value in environment(workload).items():
        monkeypatch.setenv(variable, value)
    for settings in READS[module(workload)]:
        settings()  # raises ValidationError


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_process_listens_to_all_on_the_port_that_is_probed_and_scraped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = WORKLOADS[name]
    for variable, value in environment(workload).items():
        monkeypatch.setenv(variable, value)
    settings = READS[module(workload)][0]()
    rest = name in CONTRACT
    host, port = ("host", "port") if rest else ("health_host", "health_port")
    assert getattr(settings, host) == "0.0.0.0"
    (declared,) = container(workload)["ports"]
    assert declared == {"name": "http" if rest else "health", "containerPort": getattr(settings, port)}
    probes = {kind: container(workload)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {declared["name"]}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/health",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert workload["spec"]["template"]["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": str(declared["containerPort"]),
    }


def test_members_with_names_of_their_own_keep_them_over_a_restart_and_have_different_ones() -> None:
    for name, workload in WORKLOADS.items():
        assert (workload["kind"] == "StatefulSet") == (name in STATIC_MEMBERS)
        if "FLUXORA_INSTANCE" in variables(READS[module(workload)][0]):
            first, second = (environment(workload, pod)["FLUXORA_INSTANCE"] for pod in (f"{name}-0", f"{name}-1"))
            assert first != second


def test_no_group_has_more_members_than_partitions() -> None:
    assert WORKLOADS["saga-processor"]["spec"]["replicas"] <= INPUT_PARTITIONS
    assert WORKLOADS["http-relay"]["spec"]["replicas"] <= COMMAND_PARTITIONS


def test_a_pod_is_given_the_time_that_its_process_takes_to_end() -> None:
    pre_stop = 5
    takes = {
        "transaction-coordinator": pre_stop + seconds("shutdown_seconds", CoordinatorSettings),
        "saga-orchestrator": pre_stop + seconds("shutdown_seconds", CoordinatorSettings),
        # Requests, then the claim under way, then the attempts (messages/delivery.py).
        "outbox-service": pre_stop + 3 * seconds("shutdown_seconds", MessageSettings),
        "saga-processor": seconds("publish_timeout", ProcessorSettings),
        "deadline-clock": seconds("publish_timeout", ProcessorSettings),
        "http-relay": seconds("stop_grace_s", RelaySettings) + seconds("reply_timeout_s", RelaySettings),
        "connector-watcher": seconds("watch_interval_s", WatcherSettings),
    }
    for name, workload in WORKLOADS.items():
        assert pod(workload)["terminationGracePeriodSeconds"] >= takes[name] + 10
        waits = container(workload).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        assert waits == (["sleep", str(pre_stop)] if name in CONTRACT else None)


# -- the form --------------------------------------------------------------------------------------------------------


def test_the_kustomization_lists_every_manifest() -> None:
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(read(KUBERNETES / "kustomization.yaml")[0]["resources"]) == there


def test_selectors_find_their_own_pods_and_no_others() -> None:
    pods = {name: workload["spec"]["template"]["metadata"]["labels"] for name, workload in (WORKLOADS | JOBS).items()}

    def selected(labels: Mapping[str, str]) -> list[str]:
        return [name for name, has in pods.items() if labels.items() <= has.items()]

    for name, workload in WORKLOADS.items():
        assert selected(workload["spec"]["selector"]["matchLabels"]) == [name]
        for spread in pod(workload).get("topologySpreadConstraints", []):
            assert selected(spread["labelSelector"]["matchLabels"]) == [name]
    for name, service in of_kind("Service").items():
        assert selected(service["spec"]["selector"]) == [name]
        declared = {port["name"] for port in container(WORKLOADS[name])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= declared
    for name, budget in of_kind("PodDisruptionBudget").items():
        assert selected(budget["spec"]["selector"]["matchLabels"]) == [name]


def test_what_runs_more_than_once_is_spread_and_keeps_all_but_one_through_a_drain() -> None:
    several = {name for name, replicas in REPLICAS.items() if replicas > 1}
    budgets = of_kind("PodDisruptionBudget")
    assert set(budgets) == several
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets.values())
    for name in several:
        keys = [spread["topologyKey"] for spread in pod(WORKLOADS[name])["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_a_stateful_set_names_its_headless_service() -> None:
    for name in STATIC_MEMBERS:
        assert WORKLOADS[name]["spec"]["serviceName"] == name
        assert of_kind("Service")[name]["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("name", [*WORKLOADS, *JOBS])
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    workload = (WORKLOADS | JOBS)[name]
    spec = pod(workload)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    # Kubernetes' own NAME_PORT variables must not meet our settings.
    assert spec["enableServiceLinks"] is False
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Faust wants a directory of its own, below the one for temporary files.
    assert container(workload)["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert [volume["name"] for volume in spec["volumes"]] == ["tmp"]


def test_no_secret_is_in_a_manifest() -> None:
    assert not of_kind("Secret")
    for workload in (WORKLOADS | JOBS).values():
        for entry in container(workload)["env"]:
            assert "value" not in entry or "://" not in entry["value"]


# -- images ----------------------------------------------------------------------------------------------------------


def images() -> Iterator[tuple[str, str]]:
    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("image"), str):
                yield value["image"]
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from inside(one)

    for path in [*KUBERNETES.glob("*.yaml"), *EXAMPLES, ROOT / "deploy" / "compose.yaml"]:
        for document in read(path):
            yield from ((path.name, image) for image in inside(document))
    for path in (ROOT / "deploy").glob("Dockerfile*"):
        yield from ((path.name, image) for image in re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE))


def test_no_image_names_the_host_of_a_registry_and_each_has_a_version() -> None:
    found = list(images())
    assert len(found) > len(WORKLOADS)
    for file, image in found:
        # A first part with a dot or a port would be a host.
        assert re.fullmatch(r"([a-z0-9-]+/)?[a-z0-9-]+:[a-z0-9][a-z0-9.-]*", image), f"{file}: {image}"
        assert not image.endswith(":latest")


def test_our_image_has_the_version_of_the_project_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {image for _, image in images() if image.startswith("fluxora/")}
    assert ours == {f"fluxora/transactions:{version}", f"fluxora/connect:{version}"}
    # A string: 0.1 would be a number.
    assert read(KUBERNETES / "kustomization.yaml")[0]["images"] == [{"name": "fluxora/transactions", "newTag": version}]


def test_the_image_holds_every_package_and_none_of_the_developers_tools() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert set(re.findall(r"^COPY (\w+) /src/\1$", dockerfile, re.MULTILINE)) == packages
    kept_out = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert packages <= {line.removeprefix("!") for line in kept_out if line.startswith("!")}

    extras = project["project"]["optional-dependencies"]

    def names(*groups: list[str]) -> set[str]:
        return {re.split(r"[<>=\[~! ]", one)[0] for group in groups for one in group}

    removed = re.search(r"uninstall --yes ((?:[^\n]*\\\n)*[^\n]*)", dockerfile)
    assert removed is not None
    needed = names(project["project"]["dependencies"], extras["platform"])
    # PyYAML is uvicorn's too.
    assert set(removed[1].replace("\\\n", " ").split()) == names(extras["local"], extras["dev"]) - needed - {"pyyaml"}
    assert "--require-hashes -r /src/requirements.lock" in dockerfile
    assert re.search(r"^USER [1-9]", dockerfile, re.MULTILINE)


# -- examples and compose --------------------------------------------------------------------------------------------


def example(name: str, kind: str) -> dict[str, Any]:
    (found,) = (document for document in read(KUBERNETES / "examples" / name) if document["kind"] == kind)
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_that_it_is_one_and_is_not_applied_with_the_rest(path: Path) -> None:
    assert path.read_text().startswith("# EXAMPLE, not part of `kubectl apply -k deploy/kubernetes`")
    assert {document["metadata"]["namespace"] for document in read(path)} == {"fluxora"}


def test_the_addresses_are_those_that_the_examples_give() -> None:
    settings = of_kind("ConfigMap")["fluxora"]["data"]
    kafka = example("kafka.yaml", "Kafka")["metadata"]["name"]
    connect = example("kafka-connect.yaml", "KafkaConnect")["metadata"]["name"]
    registry = example("schema-registry.yaml", "Service")
    assert settings["KAFKA_BOOTSTRAP_SERVERS"] == f"{kafka}-kafka-bootstrap:9092"
    assert settings["CONNECT_URL"] == f"http://{connect}-connect-api:8083"
    port = registry["spec"]["ports"][0]["port"]
    assert settings["SCHEMA_REGISTRY_URL"] == f"http://{registry['metadata']['name']}:{port}/apis/ccompat/v7"
    # CloudNativePG names the Secret so.
    assert example("postgresql.yaml", "Cluster")["metadata"]["name"] + "-app" == "fluxora-db-app"


def test_the_examples_run_what_the_native_stack_runs() -> None:
    def pinned(part: str, name: str) -> str:
        found = re.search(rf"<{name}.version>([^<]+)<", (ROOT / "deploy" / "jvm" / part / "pom.xml").read_text())
        assert found is not None
        return found[1]

    (plugin,) = example("kafka-connect.yaml", "KafkaConnect")["spec"]["build"]["plugins"]
    assert plugin["artifacts"][0]["version"] == pinned("debezium", "debezium")
    apicurio = f"apicurio/apicurio-registry:{pinned('registry', 'apicurio')}"
    assert container(example("schema-registry.yaml", "Deployment"))["image"] == apicurio
    compose = read(ROOT / "deploy" / "compose.yaml")[0]["services"]
    assert compose["registry"]["image"] == apicurio
    assert compose["kafka"]["image"] == f"apache/kafka:{pinned('kafka', 'kafka')}"
    assert f"FROM {compose['kafka']['image']}\n" in (ROOT / "deploy" / "Dockerfile.connect").read_text()


def test_a_record_of_ours_fits_through_every_broker_and_worker() -> None:
    broker = example("kafka.yaml", "Kafka")["spec"]["kafka"]["config"]
    compose = read(ROOT / "deploy" / "compose.yaml")[0]["services"]["kafka"]["environment"]
    assert broker["message.max.bytes"] == broker["replica.fetch.max.bytes"] == MAX_MESSAGE_BYTES
    assert compose["KAFKA_MESSAGE_MAX_BYTES"] == compose["KAFKA_REPLICA_FETCH_MAX_BYTES"] == str(MAX_MESSAGE_BYTES)
    worker = example("kafka-connect.yaml", "KafkaConnect")["spec"]["config"]
    assert worker["producer.max.request.size"] == MAX_MESSAGE_BYTES
    properties = (ROOT / "deploy" / "connect.properties").read_text()
    assert f"\nproducer.max.request.size={MAX_MESSAGE_BYTES}\n" in properties


def test_the_databases_slots_outlive_a_failover_and_there_are_connections_for_all() -> None:
    cluster = example("postgresql.yaml", "Cluster")["spec"]
    assert cluster["replicationSlots"]["highAvailability"] == {"enabled": True, "synchronizeLogicalDecoding": True}
    parameters = cluster["postgresql"]["parameters"]
    assert parameters["hot_standby_feedback"] == parameters["sync_replication_slots"] == "on"
    pools = sum(REPLICAS[name] for name in CONTRACT) * (seconds("pool_size", CoordinatorSettings) + 1)
    assert int(parameters["max_connections"]) >= pools + 50


def test_compose_runs_every_process_with_variables_that_it_reads() -> None:
    everywhere = set().union(*(variables(settings) for group in READS.values() for settings in group))
    modules = set()
    for service in read(ROOT / "deploy" / "compose.yaml")[0]["services"].values():
        if "profiles" in service:
            continue
        run = service["command"][2]
        modules.add(run)
        known = set().union(*(variables(settings) for settings in READS[run]))
        # The addresses are handed to all; what is one process's own must be read by it.
        own = {name for name in service["environment"] if name.startswith(("FLUXORA_", "DATABASE"))}
        assert own <= everywhere
        assert {name for name in own if not name.endswith(("_MAP", "_HOSTS", "_URL"))} <= known
        assert service["read_only"] is True
    assert modules == set(READS)


def test_the_database_of_compose_is_set_up_as_the_native_one() -> None:
    command = read(ROOT / "deploy" / "compose.yaml")[0]["services"]["postgres"]["command"]
    told = dict(re.findall(r"-c (\w+)=(\S+)", command))
    assert told.items() <= OPTIONS.items()
    assert {"wal_level", "max_connections", "max_slot_wal_keep_size"} <= told.keys()
