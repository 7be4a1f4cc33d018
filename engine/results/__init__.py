"""What is kept: run directories, and `Run`, `Runs` and `History`, which read them."""
