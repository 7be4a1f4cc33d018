"""What becomes of the records: JSON, a Markdown page, plots, the comparison of two files."""
