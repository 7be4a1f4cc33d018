"""Which processes there are: flags before the environment, the environment before what JAX detects."""

import pytest

from polarax.errors import UsageError
from polarax.hosts import find_cluster

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
# The port that JAX takes from the number of the job.
SLURM_ADDRESS = f"node003:{65535 - 2**12 + 1 + 7}"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*SLURM, "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_is_alone_where_nothing_says_otherwise():
    assert find_cluster() is None
    assert find_cluster(mode="off") is None


def test_flags():
    assert find_cluster("host:1234", 4, 3) == ("host:1234", 4, 3)
    assert find_cluster("[::1]:1234", 2, 0) == ("[::1]:1234", 2, 0)


def test_a_cluster_of_one_process_is_none():
    assert find_cluster("host:1234", 1, 0) is None


def test_the_environment_stands_for_flags_that_are_not_given(monkeypatch):
    given(
        monkeypatch,
        {"JAX_COORDINATOR_ADDRESS": "first:5", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "2"},
    )
    assert find_cluster() == ("first:5", 8, 2)
    assert find_cluster("other:6", process=7) == ("other:6", 8, 7)
    assert find_cluster(process=0) == ("first:5", 8, 0)


def test_slurm_is_detected(monkeypatch):
    given(monkeypatch, SLURM)
    assert find_cluster() == (SLURM_ADDRESS, 2, 1)
    assert find_cluster("first:5") == ("first:5", 2, 1)
    assert find_cluster(mode="off") is None


def test_the_environment_wins_over_detection(monkeypatch):
    given(monkeypatch, {**SLURM, "JAX_COORDINATOR_ADDRESS": "first:5", "JAX_PROCESS_ID": "0"})
    assert find_cluster() == ("first:5", 2, 0)


def test_a_job_of_one_task_is_alone(monkeypatch):
    given(monkeypatch, {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert find_cluster() is None


def test_a_detection_that_fails_is_one_line(monkeypatch):
    given(monkeypatch, {**SLURM, "SLURM_NTASKS": "many"})
    with pytest.raises(UsageError, match=r"JAX detects slurm, but cannot ask it .*--distributed=off"):
        find_cluster()


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("h:1", 2, None), {}, "--process_id is missing beside --coordinator_address, --num_processes"),
        ((None, 2, 0), {}, "--coordinator_address is missing"),
        (("h", 2, 0), {}, "must be HOST:PORT"),
        (("h:0", 2, 0), {}, "must be HOST:PORT"),
        (("h:70000", 2, 0), {}, "must be HOST:PORT"),
        (("h:1", 2, 2), {}, "from 0 to 1"),
        (("h:1", 2, -1), {}, "from 0 to 1"),
        (("h:1", 0, 0), {}, "at least 1"),
        ((), {"mode": "on"}, "detects no cluster"),
        ((None, 2, None), {"mode": "off"}, "takes no --num_processes"),
        ((), {"mode": "maybe"}, "auto, on, off"),
    ],
)
def test_what_cannot_be_is_refused(arguments, options, words):
    with pytest.raises(UsageError, match=words):
        find_cluster(*arguments, **options)


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UsageError, match="JAX_NUM_PROCESSES must be a number"):
        find_cluster("h:1", process=0)
