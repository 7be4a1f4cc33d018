"""What the runs of several posts say side by side: summary, table, pictures, page."""
