"""What of Flower 1.41.0 we lean on beyond its documented interface, name by name.

Flower's minor versions come every few weeks and move such things without notice. When this file fails after a change of
version, its messages say what moved and which of our modules stands on it; nothing else has to be searched for.
"""

import ast
import importlib
import inspect
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import flwr
import pytest

VERSION = "1.41.0"
ROOMS = ("core", "models", "strategies", "client", "server", "deploy")
CHECKOUT = Path(__file__).resolve().parents[2]


def named(dotted: str) -> Any:
    """What stands in Flower under ``module:name.name``."""
    module, _, path = dotted.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        pytest.fail(f"Flower {flwr.__version__} has no module {module} any more")
    for name in filter(None, path.split(".")):
        if not hasattr(found, name):
            pytest.fail(f"Flower {flwr.__version__} has no {dotted} any more: {name} is gone")
        found = getattr(found, name)
    return found


def names_looked_up(function: Any) -> set[str]:
    """Globals and attributes that a function, or one inside it, looks up when it runs."""
    open_codes, found = [inspect.unwrap(function).__code__], set()
    while open_codes:
        code: CodeType = open_codes.pop()
        found |= set(code.co_names)
        open_codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return found


def test_the_version_is_the_one_that_was_read() -> None:
    assert flwr.__version__ == VERSION, "read the release notes, then correct this file and what it names"


def imports() -> Iterator[tuple[str, str, str]]:
    """Every name that our modules take from Flower: file, module, name."""
    for room in ROOMS:
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "flwr":
                    for alias in node.names:
                        yield str(path.relative_to(CHECKOUT)), node.module, alias.name


def test_every_name_that_is_imported_anywhere_is_there() -> None:
    gone = []
    for path, module, name in sorted(set(imports())):
        try:
            found = importlib.import_module(module)
            if not hasattr(found, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError:
            gone.append(f"{path} takes {name} from {module}, where it is not any more")
    assert not gone, "\n".join(gone)


def test_this_file_knows_every_private_name_that_is_used() -> None:
    """A name with an underscore in front, or one that is replaced, is nobody's promise: it is pinned, or not used."""
    used = {f"{module}:{name}" for _, module, name in imports() if name.startswith("_")}
    for path in (path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        aliases = {
            (alias.asname or alias.name): f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flwr"
            for alias in node.names
        }
        used |= {
            f"{aliases[node.value.id]}:{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        }
        used |= {
            f"{aliases[node.args[0].id]}:{node.args[1].value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "replace"
            and len(node.args) == 3
            and isinstance(node.args[0], ast.Name)
            and isinstance(node.args[1], ast.Constant)
        }
    unknown = sorted(used - set(PRIVATE))
    assert not unknown, f"pin these in {Path(__file__).name}: {', '.join(unknown)}"


PARAMETERS = {
    # client/crossing.py stands for the first two and calls the third.
    "flwr.supernode.start_client_internal:_pull_and_store_message": (
        "state object_store node_config receive get_run get_fab pull_object confirm_message_received trusted_entities"
    ),
    "flwr.supernode.start_client_internal:_push_messages": "state object_store send push_object",
    "flwr.supernode.start_client_internal:_insert_message": "msg state store",
    # client/supernode.py calls these.
    "flwr.supernode.start_client_internal:start_client_internal": (
        "state_factory server_address node_config root_certificates insecure authentication_keys max_retries "
        "max_wait_time isolation runtime_api_address runtime_certificates runtime_root_certificates_path "
        "health_server_address trusted_entities superexec_auth_secret runtime_dependency_install"
    ),
    "flwr.supernode.cli.flower_supernode:_start_supernode_http_api": "config state_factory",
    "flwr.supercore.heartbeat:HeartbeatSender": "heartbeat_fn",
    "flwr.supercore.retry:make_simple_http_retry_invoker": "",
    "flwr.supernode.nodestate:NodeStateFactory": "objectstore_factory",
    # client/crossing.py takes an app's answer apart with these.
    "flwr.supercore.inflatable.inflatable_utils:inflate_object_from_contents": (
        "object_id object_contents keep_object_contents objects"
    ),
    "flwr.supercore.inflatable.inflatable_object:iterate_object_tree": "tree",
    "flwr.supernode.nodestate:NodeState.get_messages_legacy": "self run_ids is_reply limit",
    "flwr.supernode.nodestate:NodeState.delete_messages": "self message_ids",
    "flwr.supernode.nodestate:NodeState.store_message": "self message",
    "flwr.supernode.nodestate:NodeState.get_run": "self run_id",
    "flwr.supernode.nodestate:NodeState.get_node_id": "self",
    "flwr.supercore.object_store:ObjectStore.get": "self object_id",
    "flwr.supercore.object_store:ObjectStore.delete": "self object_id",
    "flwr.supercore.object_store:ObjectStore.get_object_tree": "self object_id",
    # server/link.py stands for these.
    "flwr.superlink.servicer.fleet.fleet_handlers:activate_node": "request state",
    "flwr.superlink.servicer.fleet.fleet_handlers:push_messages": "request state",
    "flwr.supercore.error:http_error_translator": "request call_next",
    "flwr.superlink.auth_plugin:ControlAuthnPlugin.validate_tokens_in_metadata": "self metadata",
    "flwr.superlink.auth_plugin:ControlAuthnPlugin.get_auth_tokens": "self device_code",
    "flwr.superlink.auth_plugin:ControlAuthnPlugin.refresh_tokens": "self metadata",
    # server/database.py calls this.
    "flwr.supercore.state.alembic.utils:run_migrations": "engine",
    # server/link.py calls these.
    "flwr.superlink.main:create_app": "config superlink_lifespan_class",
    "flwr.server.superlink.linkstate:LinkState.activate_node": "self node_id heartbeat_interval",
    "flwr.server.superlink.linkstate:LinkState.deactivate_node": "self node_id",
    "flwr.server.superlink.linkstate:LinkState.get_node_id_by_public_key": "self public_key",
    "flwr.server.superlink.linkstate:LinkState.get_node_info": "self node_ids owner_aids statuses",
    "flwr.server.superlink.linkstate:LinkState.preregister_object_tree": "self object_tree session_id",
}
"""Names of parameters, in their order."""

LOOKED_UP = {
    # We replace a name in a module; that helps only as long as Flower looks it up there when it runs.
    "flwr.supernode.start_client_internal:start_client_internal": "_pull_and_store_message _push_messages",
    "flwr.supernode.fleet_http_connection:http_request_response": "HeartbeatSender make_simple_http_retry_invoker",
    "flwr.supercore.heartbeat:HeartbeatSender._run": "HEARTBEAT_BASE_MULTIPLIER HEARTBEAT_DEFAULT_INTERVAL",
    "flwr.supercore.retry:RetryInvoker.invoke": "on_backoff should_giveup",
    "flwr.superlink.main:_get_middleware": "http_error_translator",
    "flwr.superlink.routers.fleet.router:fleet_activate_node": "fleet_handlers activate_node",
    "flwr.superlink.routers.fleet.router:fleet_push_messages": "fleet_handlers push_messages",
    "flwr.superlink.dependencies.account:AccountAccessDependency.__call__": "validate_tokens_in_metadata",
}
"""What a function looks up by name when it runs."""

CONSTANTS = {
    "flwr.common.constant:HEARTBEAT_DEFAULT_INTERVAL": 30,
    "flwr.common.constant:HEARTBEAT_CALL_TIMEOUT": 5,
    "flwr.common.constant:HEARTBEAT_PATIENCE": 2,
    "flwr.common.constant:HEARTBEAT_RANDOM_RANGE": (-0.1, 0.1),
    "flwr.common.constant:HEARTBEAT_MIN_INTERVAL": 10,
    "flwr.common.constant:HEARTBEAT_MAX_INTERVAL": 1800,
    "flwr.common.constant:ISOLATION_MODE_PROCESS": "process",
    "flwr.common.constant:TRANSPORT_TYPE_GRPC_RERE": "grpc-rere",
    "flwr.common.constant:ACCESS_TOKEN_KEY": "flwr-oidc-access-token",
    "flwr.common.constant:NOOP_ACCOUNT_NAME": "none",
    "flwr.common.constant:TIMESTAMP_TOLERANCE": 300,
    "flwr.common.constant:SYSTEM_TIME_TOLERANCE": 5,
    "flwr.common.constant:FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": 5 * 2**20,
    "flwr.common.constant:ErrorCode.LOAD_CLIENT_APP_EXCEPTION": 1,
    "flwr.common.constant:ErrorCode.CLIENT_APP_RAISED_EXCEPTION": 2,
    "flwr.common.constant:ErrorCode.NODE_UNAVAILABLE": 5,
    "flwr.common.constant:ErrorCode.INVALID_FAB": 7,
    "flwr.common.constant:ErrorCode.CLIENT_APP_CRASHED": 8,
    "flwr.supercore.constant:OBJECT_PUSH_SESSION_TTL_SECONDS": 180,
    "flwr.supercore.constant:FLEET_HTTP_PUBLIC_KEY_HEADER": "flwr-public-key",
    "flwr.supercore.constant:NOOP_FEDERATION_ID": "@none/default",
    "flwr.supercore.constant:NodeStatus.ONLINE": "online",
    "flwr.supercore.constant:TaskType.AGENT_APP": "flwr-agentapp",
    "flwr.supercore.error:ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED": 2007,
    "flwr.supercore.superexec.run_superexec:_TASK_POLL_INTERVAL_ENV": "FLWR_SUPEREXEC_TASK_POLL_INTERVAL",
}
"""Values that ours are chosen by."""

FIELDS = {
    "flwr.supernode.cli.flower_supernode:SuperNodeLifespanConfig": (
        "server_address root_certificates insecure authentication_keys max_retries max_wait_time node_config isolation "
        "runtime_certificates runtime_root_certificates_path health_server_address trusted_entities "
        "superexec_auth_secret runtime_dependency_install host port runtime_ssl_certfile runtime_ssl_keyfile"
    ),
    "flwr.superlink.config_loader:SuperLinkLifespanConfig": (
        "control_address health_server_address host port insecure certificates superexec_auth_secret authn_plugin "
        "event_log_plugin fleet_event_log_plugin enable_event_log artifact_provider enable_supernode_auth "
        "fleet_api_type fleet_api_address simulation ssl_ca_certfile ssl_certfile ssl_keyfile database isolation "
        "runtime_dependency_install"
    ),
}
"""Fields of Flower's own settings; a new one may open something that has to be shut."""

COLUMNS = {
    "flwr.supercore.state.schema.linkstate_models:Node": "node_id status online_until heartbeat_interval public_key",
    "flwr.supercore.state.schema.corestate_models:Task": "token active_until finished_at",
    "flwr.supercore.state.schema.corestate_models:ObjectPushSession": "expires_at",
    "flwr.supercore.state.schema.corestate_models:ObjectPushSessionRoot": "session_id root_object_id",
    "flwr.supercore.state.schema.linkstate_models:MessageRes": "message_id",
}
"""Columns of the SuperLink's database that server/link.py reads or writes."""

FLEET = (
    "activate-node confirm-message-received deactivate-node get-fab get-run pull-messages pull-object push-messages "
    "push-object register-node send-node-heartbeat unregister-node"
)
"""Calls that the public port lets through; a new one is to be looked at first."""

PRIVATE = {
    *PARAMETERS,
    # Replaced; LOOKED_UP says where Flower looks for them.
    "flwr.superlink.main:http_error_translator",
    "flwr.supernode.fleet_http_connection:HeartbeatSender",
    "flwr.supernode.fleet_http_connection:make_simple_http_retry_invoker",
    "flwr.supercore.heartbeat:HEARTBEAT_BASE_MULTIPLIER",
    "flwr.supercore.superexec.run_superexec:_TASK_POLL_INTERVAL_ENV",
}


@pytest.mark.parametrize("dotted", PARAMETERS)
def test_a_function_takes_what_it_took(dotted: str) -> None:
    found = [
        name
        for name, parameter in inspect.signature(named(dotted)).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    assert found == PARAMETERS[dotted].split(), f"{dotted} takes other parameters than in {VERSION}"


@pytest.mark.parametrize("dotted", LOOKED_UP)
def test_a_name_that_is_replaced_is_looked_up_when_it_is_needed(dotted: str) -> None:
    function = named(dotted)
    assert isinstance(inspect.unwrap(function), FunctionType)
    missing = set(LOOKED_UP[dotted].split()) - names_looked_up(function)
    assert not missing, (
        f"{dotted} does not look up {', '.join(sorted(missing))} any more: what replaces it has no effect"
    )


@pytest.mark.parametrize("dotted", CONSTANTS)
def test_a_constant_is_what_it_was(dotted: str) -> None:
    found = named(dotted)
    assert found == CONSTANTS[dotted], f"{dotted} is {found!r} and was {CONSTANTS[dotted]!r} in {VERSION}"


@pytest.mark.parametrize("dotted", FIELDS)
def test_settings_have_the_fields_that_they_had(dotted: str) -> None:
    found = {field.name for field in fields(named(dotted))}
    expected = set(FIELDS[dotted].split())
    assert found == expected, f"{dotted}: new {sorted(found - expected)}, gone {sorted(expected - found)}"


@pytest.mark.parametrize("dotted", COLUMNS)
def test_the_database_has_the_columns_that_are_written(dotted: str) -> None:
    missing = set(COLUMNS[dotted].split()) - set(named(dotted).__table__.columns.keys())
    assert not missing, f"{dotted} has no {', '.join(sorted(missing))} any more"


def test_the_fleet_api_has_the_calls_that_it_had() -> None:
    calls = named("flwr.supercore.protobuf.translation:PROTOBUF_REQUEST_TYPES")
    found = {path.removeprefix("/v1/fleet/") for method, path in calls if path.startswith("/v1/fleet/")}
    assert found == set(FLEET.split()), "the public port would let through other calls than were looked at"
    assert {method for method, _ in calls} == {"POST"}


def test_every_part_of_flower_tries_again_when_it_is_told_503() -> None:
    """`server/link.py` answers so while the database is locked."""
    assert 503 in named("flwr.supercore.retry.http_retry:_RETRYABLE_STATUS_CODES")
    source = inspect.getsource(named("flwr.supernode.fleet_http_connection:http_request_response"))
    assert "(502, 503, 504)" in source, "a SuperNode's heartbeat does not take 503 for a reason to try again any more"


def test_the_own_middleware_of_flower_is_in_the_order_that_it_was() -> None:
    """The signature is checked before a handler sees a request, and errors are translated outside of both."""
    order = [middleware.cls.__name__ for middleware in named("flwr.superlink.main:_get_middleware")()]
    assert order == [
        "ControlSensitiveResponseMiddleware",
        "BaseHTTPMiddleware",
        "ControlAuthenticationMiddleware",
        "ControlLicenseMiddleware",
        "ProtobufTranslationMiddleware",
        "RuntimeTracingMiddleware",
        "ControlEventLogMiddleware",
        "NodeAuthMiddleware",
        "FleetEventLogMiddleware",
    ]


def test_calls_of_the_control_api_that_need_no_token_are_the_ones_that_were_looked_at() -> None:
    keys = named("flwr.superlink.routers.control.middlewares:CONTROL_AUTH_ROUTE_KEYS")
    assert {path for _, path in keys} == {
        "/v1/control/get-login-details",
        "/v1/control/get-auth-tokens",
        "/v1/control/refresh-auth-tokens",
    }


def test_only_one_call_of_the_runtime_api_needs_the_secret_and_the_others_a_task() -> None:
    assert named("flwr.supercore.superexec.run_superexec:_SUPEREXEC_AUTH_METHODS") == {
        "/flwr.proto.Runtime/AcquireTask"
    }


def test_what_an_installed_extension_could_change_is_not_installed() -> None:
    """Flower loads `flwr.ee` where it finds it, and takes authentication and storage from there."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flwr.ee")


@pytest.mark.parametrize("command", ["flower-superexec", "flwr-serverapp", "flwr-clientapp"])
def test_the_commands_that_are_started_by_name_are_there(command: str) -> None:
    assert shutil.which(command, path=str(Path(sys.executable).parent)), f"Flower installs no {command} any more"


def test_flower_starts_apps_by_the_names_that_are_looked_for() -> None:
    types, commands = (named(f"flwr.supercore.constant:{name}") for name in ("TaskType", "TASK_TYPE_TO_COMMAND"))
    assert commands[types.CLIENT_APP] == "flwr-clientapp"
    assert commands[types.SERVER_APP] == "flwr-serverapp"
    assert types.SERVER_APP.value == "flwr-serverapp"


def test_the_switches_that_keep_flower_quiet_are_the_ones_that_it_reads() -> None:
    """`core/flower.py` sets them; that they work is seen in tests/server and tests/client."""
    telemetry = inspect.getsource(named("flwr.supercore.telemetry"))
    assert 'os.getenv("FLWR_TELEMETRY_ENABLED", "1")' in telemetry
    constants = inspect.getsource(named("flwr.supercore.constant"))
    assert 'os.getenv("FLWR_SUPERGRID_API_URL"' in constants
    assert named("flwr.supercore.constant:FLWR_DISABLE_UPDATE_CHECK") == "FLWR_DISABLE_UPDATE_CHECK"
    name = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
    assert named(f"flwr.common.constant:{name}") == name
    assert "FLWR_HOME" in inspect.getsource(named("flwr.supercore.utils:get_flwr_home"))


def test_a_message_is_named_after_what_it_says() -> None:
    """An answer that is sent twice keeps its name, so that it is counted once (`client/crossing.py`)."""
    source = inspect.getsource(named("flwr.supernode.start_client_internal:_insert_message"))
    assert 'msg.metadata.__dict__["_message_id"] = msg.object_id' in source
    store = inspect.getsource(named("flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_message_res"))
    assert "return message_id" in store
