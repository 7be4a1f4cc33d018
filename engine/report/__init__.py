"""What a run says, for people: summary by role, table, reading in plain words, plots."""
