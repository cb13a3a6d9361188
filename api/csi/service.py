"""How a call is answered: in a thread, with its errors as statuses of gRPC."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message_factory import GetMessageClass

from api.cli.client import ApiCallFailed, ApiClient
from api.csi import csi_pb2
from api.csi.api import Api
from api.csi.errors import CallRejected, status_of

#: Answers a request. It may block.
Call = Callable[[Api, Any], Any]
Open = Callable[[], Api]

log: Final = structlog.stdlib.get_logger()


def opener(client: ApiClient, node: str, patience: float) -> Open:
    """Return what begins a call, which waits for jobs for at most ``patience`` seconds."""
    return lambda: Api(client, node, patience=patience, pause=time.sleep)


def handler_of(service: str, calls: Mapping[str, Call], begin: Open) -> grpc.GenericRpcHandler:
    """Return the handler of a service of the interface file: each of its methods must be among the calls."""
    described = csi_pb2.DESCRIPTOR.services_by_name[service]
    methods = {method.name: _handler(method, calls[method.name], begin) for method in described.methods}
    return grpc.method_handlers_generic_handler(described.full_name, methods)


def _handler(method: Any, call: Call, begin: Open) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        _answerer(method.name, call, begin),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _answerer(name: str, call: Call, begin: Open) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await asyncio.to_thread(lambda: call(begin(), request))
        except CallRejected as rejected:
            status, message = rejected.status, rejected.message
        except ApiCallFailed as error:
            status, message = status_of(error), error.message
        except Exception as error:  # the orchestrator is told, and the process goes on
            log.exception("csi.call_crashed", call=name)
            status, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        log.info("csi.call_rejected", call=name, status=status.name, detail=message)
        return await context.abort(status, message)

    return answer
