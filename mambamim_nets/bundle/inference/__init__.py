"""New scans: listing them, loading them one by one, calling networks on them."""
