"""The satellite review app: map, tile list, tile page, decisions, exports."""
