"""Where files are kept: local folders, web servers, buckets, the hub. Each reads byte ranges, blocking."""
