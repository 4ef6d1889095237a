"""`seqvault health`: the standard health check."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def is_healthy(address: str, *, timeout: float) -> bool:
    """Whether the server answers SERVING within `timeout` seconds."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=""), timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
