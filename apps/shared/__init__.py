"""What the three review apps share: sessions, decisions, drafts, loading, components."""
