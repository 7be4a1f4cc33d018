"""One run over several processes: who they are, how they agree, and what happens when one of them fails.

The processes are those of `jax.distributed`; all that passes between them goes through the key-value store of its
coordination service, in words of a few bytes. Nothing here touches a device.
"""

from polarax.hosts.clusters import Cluster, find_cluster
from polarax.hosts.coordination import Hosts, current
from polarax.hosts.joining import LANES, joined
from polarax.hosts.taking import Taking

__all__ = ["LANES", "Cluster", "Hosts", "Taking", "current", "find_cluster", "joined"]
