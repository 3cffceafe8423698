"""Why opens fail with EPERM, from evidence, and what would help."""
