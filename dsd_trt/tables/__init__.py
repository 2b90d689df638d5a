"""Tables of the user: CSV, JSONL and Parquet files, row by row."""
