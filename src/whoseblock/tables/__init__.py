"""Answers as tables of Apache Arrow and Parquet, for pandas, Polars, DuckDB and others."""
