"""The commands that every domain shares."""
