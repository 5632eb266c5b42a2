"""The chest film review app: worklist, reading page, decisions, reports."""
