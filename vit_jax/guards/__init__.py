"""What keeps a run from being lost: each module guards against one way of it."""
