"""Numbers side by side: tables, pooled rows, and the claims of the paper."""
