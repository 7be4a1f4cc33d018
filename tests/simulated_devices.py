"""Several devices on one processor."""

import os


def xla_flags(count: int) -> str:
    """XLA_FLAGS of a process that is to have so many, with those of this process."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
