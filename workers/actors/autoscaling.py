"""What Ray's autoscaler says about the machines that a placement group waits for.

Every cluster of Ray's second autoscaler, the one that KubeRay runs, has its reports. Where it may
not add machines, it refuses all groups that need more. The first autoscaler reports nothing here.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup

REPLY_SECONDS = 30


def autoscales() -> bool:
    """Whether an autoscaler reports which groups it has machines for."""
    return int(_reported().autoscaler_state_version) > 0


def refuses(group: PlacementGroup) -> bool:
    """Whether the autoscaler cannot add the machines that the group waits for."""
    refused = _reported().infeasible_gang_resource_requests
    return any(group.id.hex() in request.details for request in refused)


def _reported() -> Any:
    """The autoscaler's last report; Ray's documented functions leave out what it refuses."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=REPLY_SECONDS))
    return reply.autoscaling_state
