"""The store of reviewers' decisions: schema, hash chain, agreement, export."""
