"""Reader of Crello's Parquet tables."""
