"""Chest film data sets: labels, columns and lists of each publisher."""
