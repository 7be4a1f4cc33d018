"""Which processes there are: by flags, by the environment, or by what JAX detects, in that order."""

import os
import warnings
from typing import NamedTuple

from polarax.errors import UsageError

AUTO, ON, OFF = MODES = ("auto", "on", "off")

# What stands for a flag that is not given; the first is JAX's own.
ENVIRONMENT = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


class Cluster(NamedTuple):
    """The processes of a run, as one of them sees them."""

    address: str  # HOST:PORT at which process 0 coordinates
    processes: int
    process: int


def find_cluster(
    address: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    mode: str = AUTO,
    seconds: int = 60,
) -> Cluster | None:
    """The cluster that this process belongs to; None if it is alone.

    Args:
        address: HOST:PORT of process 0; None for what the environment says (`ENVIRONMENT`), or JAX detects.
        processes: Their number; None likewise.
        process: Number of this one; None likewise.
        mode: "auto"; "on", which refuses to be alone; or "off".
        seconds: Limit of a detection that asks others.

    Raises:
        UsageError: Something is missing, contradicts itself, or cannot be detected.
    """
    if mode not in MODES:
        raise UsageError(f"Unknown --distributed={mode}. Expected one of {', '.join(MODES)}.")
    given = {"coordinator_address": address or None, "num_processes": processes, "process_id": process}
    if mode == OFF:
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise UsageError(f"--distributed=off takes no --{named[0]}.")
        return None
    for name, variable in ENVIRONMENT.items():
        if given[name] is None and os.environ.get(variable):
            given[name] = _parsed(name, os.environ[variable], variable)
    if None in given.values():
        detected = _detected(given, seconds)
        given = {name: detected.get(name) if value is None else value for name, value in given.items()}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if mode == ON:
            raise UsageError(
                "--distributed=on, but JAX detects no cluster here. Give --coordinator_address, --num_processes and "
                "--process_id."
            )
        return None
    if missing:
        there = ", ".join(f"--{name}" for name in given if name not in missing)
        raise UsageError(f"--{missing[0]} is missing beside {there}, and JAX detects no cluster that tells it.")
    return _checked(given["coordinator_address"], given["num_processes"], given["process_id"])


def _parsed(name, text, variable):
    if name == "coordinator_address":
        return text
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{variable} must be a number. Got {text!r}.") from None


def _detected(given, seconds):
    """What JAX finds of what is not given; nothing where there is no cluster, or one of one process."""
    from jax._src.clusters import ClusterEnv  # has no public name; what jax.distributed.initialize() asks

    name = "a cluster"
    try:
        with warnings.catch_warnings():  # of a Kubernetes pod without the package that asks about it
            warnings.simplefilter("ignore")
            found = [one for one in ClusterEnv._cluster_types if not one.opt_in_only_method and one.is_env_present()]
            if not found:
                return {}
            cluster = found[0]
            name = cluster.name or cluster.__name__
            processes = given["num_processes"] or cluster.get_process_count()
            if processes == 1 and given["coordinator_address"] is None:
                return {}
            address = given["coordinator_address"] or cluster.get_coordinator_address(
                timeout_secs=seconds, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
            )
            return {
                "coordinator_address": address,
                "num_processes": processes,
                "process_id": cluster.get_process_id(),
            }
    except Exception as error:  # whatever a cluster's own interface raises
        raise UsageError(
            f"JAX detects {name}, but cannot ask it ({error}). Give --coordinator_address, --num_processes and "
            "--process_id, or --distributed=off to run alone."
        ) from error


def _checked(address, processes, process):
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--coordinator_address must be HOST:PORT. Got {address!r}.")
    if processes < 1:
        raise UsageError(f"--num_processes must be at least 1. Got {processes}.")
    if not 0 <= process < processes:
        raise UsageError(f"--process_id must be from 0 to {processes - 1}, one less than their number. Got {process}.")
    return Cluster(address, processes, process) if processes > 1 else None
