"""Following spectra inside a training loop: `polarax.Tracker` and `polarax.monitor`."""

from polarax.tracking.costs import TrackingPlan
from polarax.tracking.monitor import MonitorState, monitor
from polarax.tracking.tracked_metrics import Metrics
from polarax.tracking.tracker import Tracker, TrackerState
from polarax.tracking.writers import JsonlWriter, read_jsonl

__all__ = ["JsonlWriter", "Metrics", "MonitorState", "Tracker", "TrackerState", "TrackingPlan", "monitor", "read_jsonl"]
