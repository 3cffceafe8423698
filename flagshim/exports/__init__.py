"""Traces for what looks at many machines: Parquet files, an OTLP endpoint; one module each."""
