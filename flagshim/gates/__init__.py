"""Whether what a trace says will do: conditions to fail on, and a baseline of the expected."""
