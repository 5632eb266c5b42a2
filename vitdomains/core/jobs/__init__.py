"""Resumable jobs over shards, on process pools or a Ray cluster."""
