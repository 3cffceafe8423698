"""What a trace says, for people (table) and for programs (JSON, CSV); one module a format."""
