"""Everything that reaches the supervisor, in one typed queue."""

from __future__ import annotations

import queue

from dtrain.api.cluster import ClusterEvent
from dtrain.api.protocol import AgentEvent
from dtrain.record.inspection import InspectionRequest
from dtrain.supervisor.beside.background import TaskDone
from dtrain.supervisor.beside.debugging import Typed
from dtrain.supervisor.leaving.stop_request import FolderTrouble, LeaseLost, StopRequest

Item = AgentEvent | ClusterEvent | StopRequest | LeaseLost | FolderTrouble | InspectionRequest | Typed | TaskDone
SupervisorInbox = queue.SimpleQueue[tuple[str, Item]]
"""(node, what happened there), in the order of arrival; '' is the supervisor's own."""
